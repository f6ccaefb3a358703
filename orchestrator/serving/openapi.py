"""The service's OpenAPI description."""

from __future__ import annotations

from typing import Any

from orchestrator.serving import webhook
from orchestrator.serving.settings import ServiceSettings
from orchestrator.version import code_version

RESULTS = ("image/jpeg", "image/png", "image/tiff", "image/webp", "image/bmp")
IMAGES = (*RESULTS, "image/avif", "image/gif", "image/heic")
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ERRORS = {
    "400": "The request has no image.",
    "401": "The bearer token is missing or wrong.",
    "403": "Another site's page sends the request, or its Host header names another service.",
    "408": "The image did not arrive in time.",
    "413": "The image has too many bytes.",
    "415": "The body is not a JPEG, PNG, TIFF, WebP, BMP, AVIF, GIF or HEIC image.",
    "422": "The image has too many pixels, is damaged, or has an unsupported layout.",
    "429": "Too many requests are in flight. Retry after the seconds in Retry-After.",
    "500": "The model's result is not finite, or an internal error occurred.",
    "503": "Every replica that had the image died, or the service is shutting down.",
    "504": "Restoring took too long.",
}

_WEBHOOK = {
    "summary": "Delivery of MLflow's webhook, signed with its secret",
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
    "responses": {
        "200": {"description": "The delivery is authentic."},
        "401": {"description": "The signature is wrong, or the delivery is too old."},
    },
}


def openapi(settings: ServiceSettings, *, secured: bool, has_webhook: bool = False) -> dict[str, Any]:
    """Return the OpenAPI description of a service; `secured` adds the bearer token."""
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    restore: dict[str, Any] = {
        "summary": "Restore one photograph",
        "description": (
            f"At most {settings.max_bytes:,} bytes and {settings.max_pixels:,} pixels. The response has the format, "
            "size, depth, alpha, EXIF and ICC profile of the request."
        ),
        "requestBody": {
            "required": True,
            "content": {
                **dict.fromkeys((*IMAGES, "application/octet-stream"), _BINARY),
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["image"],
                        "properties": {"image": {"type": "string", "format": "binary"}},
                    }
                },
            },
        },
        "responses": {
            "200": {
                "description": "The restored photograph.",
                "headers": {
                    "X-Mirage-Model": _header("The model that restored it: name/version, percent-encoded."),
                    "X-Mirage-Batch": _header("Number of images in the batch."),
                    "Server-Timing": _header("Time of decode, wait, restore and encode [ms]."),
                },
                "content": dict.fromkeys(RESULTS, _BINARY),
            },
            **{status: {"description": text, "content": error} for status, text in _ERRORS.items()},
        },
    }
    metrics: dict[str, Any] = {
        "summary": "Metrics",
        "responses": {"200": {"description": "Metrics in Prometheus' text format."}},
    }
    if secured:
        for route in (restore, metrics):
            route["security"] = [{"bearer": []}]
        metrics["responses"]["401"] = restore["responses"]["401"]
    return {
        "openapi": "3.1.0",
        "info": {"title": "MIRAGE image restoration", "version": code_version()},
        "paths": {
            "/restore": {"post": restore},
            "/health": {
                "get": _json(
                    "Status, active model, rejected version and reason, replicas, requests in flight."
                )
            },
            "/model": {"get": _json("The active model: name, version, recipe, scores.")},
            "/metrics": {"get": metrics},
            **({webhook.PATH: {"post": _WEBHOOK}} if has_webhook else {}),
        },
        "components": {
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["status", "error"],
                    "properties": {"status": {"type": "integer"}, "error": {"type": "string"}},
                }
            },
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _header(text: str) -> dict[str, Any]:
    return {"description": text, "schema": {"type": "string"}}


def _json(text: str) -> dict[str, Any]:
    ok = {"description": text, "content": {"application/json": {"schema": {"type": "object"}}}}
    return {"summary": text, "responses": {"200": ok}}
