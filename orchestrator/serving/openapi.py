"""The service's OpenAPI description."""

from __future__ import annotations

from typing import Any

from orchestrator.serving.settings import Settings
from orchestrator.version import code_version

IMAGES = ("image/jpeg", "image/png", "image/tiff", "image/webp", "image/bmp")
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_REFUSALS = {
    "400": "No image in the request.",
    "401": "The bearer token is missing or wrong.",
    "408": "The image did not arrive in time.",
    "413": "The image has too many bytes.",
    "415": "The bytes are no JPEG, PNG, TIFF, WebP or BMP image.",
    "422": "The image has too many pixels, is damaged, or has a layout that cannot be restored.",
    "429": "Too many requests are inside. Come back after the seconds of Retry-After.",
    "500": "The model's result is not finite, or a bug.",
    "503": "No replica could do it, or the service is ending.",
    "504": "Restoring took too long.",
}


def openapi(settings: Settings, secured: bool) -> dict[str, Any]:
    """Return the description as JSON."""
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    restore: dict[str, Any] = {
        "summary": "Restore one photograph",
        "description": (
            f"At most {settings.max_bytes:,} bytes and {settings.max_pixels:,} pixels. The answer has the format, "
            "size, depth, alpha, EXIF and ICC profile of the question."
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
                    "X-Mirage-Batch": _header("How many images were restored at once."),
                    "Server-Timing": _header("Milliseconds of decode, wait, restore and encode."),
                },
                "content": dict.fromkeys(IMAGES, _BINARY),
            },
            **{status: {"description": told, "content": error} for status, told in _REFUSALS.items()},
        },
    }
    metrics: dict[str, Any] = {
        "summary": "Metrics",
        "responses": {"200": {"description": "Prometheus text."}},
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
                "get": _json("Whether it serves, which model answers, which version was refused and why.")
            },
            "/model": {"get": _json("The model that answers: name, version, recipe, figures.")},
            "/metrics": {"get": metrics},
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


def _header(told: str) -> dict[str, Any]:
    return {"description": told, "schema": {"type": "string"}}


def _json(told: str) -> dict[str, Any]:
    ok = {"description": told, "content": {"application/json": {"schema": {"type": "object"}}}}
    return {"summary": told, "responses": {"200": ok}}
