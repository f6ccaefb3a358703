"""The routes of the service. `POST /restore` checks the token, capacity, body and image header, then restores."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from time import perf_counter
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.errors import PhotoError, UnsupportedPhotoError
from orchestrator.imaging.formats import READ_SUFFIXES
from orchestrator.imaging.photos import image_size
from orchestrator.serving import metrics, webhook
from orchestrator.serving.active_model import ActiveModel
from orchestrator.serving.admission import AdmissionControl, UploadBudget, UploadsFullError
from orchestrator.serving.auth import allows
from orchestrator.serving.backend import Backend, ReplicasFailedError
from orchestrator.serving.openapi import openapi
from orchestrator.serving.page import SAMPLES, page, samples
from orchestrator.serving.replica import RestoredImage, RestoreFailure
from orchestrator.serving.request_body import BodyError, paced, read_body
from orchestrator.serving.request_filter import NOSNIFF, RequestFilter
from orchestrator.serving.settings import ServiceSettings
from orchestrator.serving.webhook import Delivery, DeliveryError, DeliveryVerifier, read_delivery

log = logging.getLogger(__name__)

CLIENT_DISCONNECTED = 499
"""Status in the metrics for a client that closed its connection."""

_NO_TOKEN = "This service needs a bearer token."
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="mirage"'}
_CACHED = {"Cache-Control": "max-age=86400"}
_OLD_KEYS = {"inside": "in_flight", "room": "max_in_flight", "refused": "rejected"}
"""Old keys of /health, for clients that use them: old -> new."""


class RequestError(Exception):
    """A request that gets no image, with its HTTP status."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


class Service:
    """The HTTP application of one service, with its model, its replicas and its admission control."""

    def __init__(
        self,
        settings: ServiceSettings,
        active: ActiveModel,
        backend: Backend,
        token: str | None,
        verifier: DeliveryVerifier | None = None,
    ) -> None:
        self.settings = settings
        self.active = active
        self.backend = backend
        self.admission = AdmissionControl(settings.max_in_flight)
        self.uploads = UploadBudget(settings.max_in_flight * settings.max_bytes)
        self.metrics = metrics.ServiceMetrics(settings.max_in_flight)
        self.draining = False
        self.registry_error: Callable[[], str] = lambda: ""
        self.alias_moved: Callable[[], None] = lambda: None
        """Called for an authentic delivery of the webhook; thread-safe."""
        self._token = token
        self._verifier = verifier
        self._openapi = openapi(settings, secured=token is not None, has_webhook=verifier is not None)
        self.app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/samples/{name}", self._sample),
                Route("/restore", self._restore, methods=["POST"]),
                Route("/health", self._health),
                Route("/model", self._model),
                Route("/metrics", self._metrics),
                Route("/openapi.json", self._describe),
                *([Route(webhook.PATH, self._webhook, methods=["POST"])] if verifier else []),
            ],
            exception_handlers={HTTPException: _http_error, Exception: _internal_error},
            middleware=[
                Middleware(
                    RequestFilter,
                    # No page of another site has the token.
                    names=settings.names if token is None else None,
                    open_paths=[webhook.PATH] if verifier else [],
                )
            ],
        )
        self.app.router.redirect_slashes = (
            False  # RequestFilter finds the route; a redirect would lose a base path
        )

    # -------------------------------------------------------------------------------------- POST /restore

    async def _restore(self, request: Request) -> Response:
        start, status = perf_counter(), 500  # the status of an unexpected exception
        try:
            response = await self._respond(request)
            status = response.status_code
        except (RequestError, BodyError) as error:
            status = error.status
            response = _error(status, str(error), error.headers if isinstance(error, RequestError) else None)
        except ClientDisconnect:
            status = CLIENT_DISCONNECTED
            response = Response(status_code=CLIENT_DISCONNECTED)
        except asyncio.CancelledError:  # Serve's proxies cancel the request of a client that disconnects
            status = CLIENT_DISCONNECTED
            raise
        finally:
            self.metrics.request_ended(status, perf_counter() - start)
        return response

    async def _respond(self, request: Request) -> Response:
        settings = self.settings
        chunks = paced(
            request.stream(), settings.upload_rate, settings.upload_window_seconds, settings.upload_seconds
        )
        if not allows(self._token, request.headers.get("authorization")):
            await self._discard_body(request, chunks)
            raise RequestError(401, _NO_TOKEN, _CHALLENGE)
        if self.admission.full:
            await self._discard_body(request, chunks)
            raise self._busy(f"{self.admission.capacity} requests are in flight, the maximum.")
        with self.uploads.upload() as upload:
            try:
                data = await self._receive(request, upload.counted(chunks))
            except UploadsFullError:
                await self._discard_body(request, chunks)
                raise self._busy("There is no memory for more images now.") from None
            # Only now: clients that do not send, or slowly, take no places from those that do.
            if not self.admission.acquire():
                raise self._busy(f"{self.admission.capacity} requests are in flight, the maximum.")
            busy = None
            try:
                await asyncio.to_thread(check_header, data, settings.max_pixels)
                restored, label = await self._restored(data, request)
                busy = restored.seconds["restore"] / restored.batch
            finally:
                self.admission.release(busy)
        self.metrics.image_restored(restored)
        timing = ", ".join(f"{part};dur={1000 * seconds:.1f}" for part, seconds in restored.seconds.items())
        return Response(
            restored.data,
            media_type=f"image/{restored.format.lower()}",
            headers={
                "X-Mirage-Model": quote(label),
                "X-Mirage-Batch": str(restored.batch),
                "Server-Timing": timing,
                "Cache-Control": "no-store",
            },
        )

    def _busy(self, reason: str) -> RequestError:
        wait = self.admission.retry_after(self.backend.replicas)
        return RequestError(429, f"{reason} Retry in {wait} s.", {"Retry-After": str(wait)})

    async def _receive(self, request: Request, chunks: AsyncIterator[bytes]) -> bytes:
        headers = request.headers
        coding = headers.get("content-encoding", "identity")
        if coding.strip().lower() not in ("identity", ""):
            await self._discard_body(request, chunks)
            raise RequestError(
                415,
                f"The body has Content-Encoding {coding[:50]!r}, which is not read here. Send the file as it is.",
            )
        return await read_body(
            chunks,
            headers.get("content-length"),
            headers.get("content-type", ""),
            self.settings.max_bytes,
            waits=_waits(request),
        )

    async def _discard_body(self, request: Request, chunks: AsyncIterator[bytes]) -> None:
        """Read and drop the body of a refused request: most clients read the response only after sending it."""
        length = 0
        if not _waits(request):
            with suppress(BodyError):
                async for chunk in chunks:
                    length += len(chunk)
                    if length > self.settings.max_bytes:
                        return

    async def _restored(self, data: bytes, request: Request) -> tuple[RestoredImage, str]:
        """Return the restored image and the label of the model that restored it."""
        deadline = asyncio.get_running_loop().time() + self.settings.timeout_seconds
        while True:
            model = self.active.current
            remaining = deadline - asyncio.get_running_loop().time()
            try:
                result = await _unless_disconnected(request, self.backend.restore(data, model), remaining)
            except TimeoutError:
                raise RequestError(
                    504,
                    f"Restoring took longer than {self.settings.timeout_seconds:g} s. Send a smaller image.",
                ) from None
            except ReplicasFailedError as error:
                raise RequestError(503, str(error), {"Retry-After": "5"}) from error
            if isinstance(result, RestoredImage):
                return result, model.label
            if result.fault == "file":
                raise RequestError(422, result.reason)
            if not self.active.roll_back(model, result.reason):
                raise RequestError(500, result.reason)

    # -------------------------------------------------------------------------------------- other routes

    def health(self) -> dict[str, Any]:
        """Return the response of /health."""
        rejected = self.active.rejected
        health = {
            "status": "draining" if self.draining else "ok",
            "model": self.active.current.label,
            "rejected": {"version": rejected.version, "reason": rejected.reason} if rejected else None,
            "registry": self.registry_error() or "ok",
            "replicas": self.backend.replicas,
            "in_flight": self.admission.in_flight,
            "max_in_flight": self.admission.capacity,
        }
        return health | {old: health[new] for old, new in _OLD_KEYS.items()}

    async def _health(self, request: Request) -> Response:
        return JSONResponse(self.health(), status_code=503 if self.draining else 200)

    async def _model(self, request: Request) -> Response:
        limits = {
            "max_bytes": self.settings.max_bytes,
            "max_pixels": self.settings.max_pixels,
            "formats": sorted(set(READ_SUFFIXES.values())),
        }
        return JSONResponse(
            {**self.active.current.facts(), **limits, "token": self._token is not None},
            headers={"Cache-Control": "no-store"},
        )

    async def _metrics(self, request: Request) -> Response:
        if not allows(self._token, request.headers.get("authorization")):
            return _error(401, _NO_TOKEN, _CHALLENGE)
        text = self.metrics.text(
            in_flight=self.admission.in_flight,
            replicas=self.backend.replicas,
            retries=self.backend.retries,
            model=self.active.current,
            rejected=self.active.rejected is not None,
        )
        return Response(text, media_type=metrics.CONTENT_TYPE)

    async def _webhook(self, request: Request) -> Response:
        assert self._verifier is not None
        try:
            delivery = self._verifier.verify(request.headers, await read_delivery(request.stream()))
        except DeliveryError as error:
            self.metrics.webhook_delivered(error.status)
            return _error(error.status, str(error))
        except ClientDisconnect:
            return Response(status_code=CLIENT_DISCONNECTED)
        if delivery is Delivery.ALIAS_MOVED:
            self.alias_moved()
        self.metrics.webhook_delivered(200)
        return JSONResponse({"status": 200, "result": delivery.value})

    async def _describe(self, request: Request) -> Response:
        return JSONResponse(self._openapi)

    async def _page(self, request: Request) -> Response:
        return Response(page().html, media_type="text/html", headers=page().headers)

    async def _sample(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in {sample["file"] for sample in samples()}:
            return _error(404, f"There is no sample {name}.")
        # Not FileResponse, whose answers to a wrong Range are text.
        return Response((SAMPLES / name).read_bytes(), media_type="image/jpeg", headers=_CACHED)


def check_header(data: bytes, max_pixels: int) -> None:
    """Check format and size of an image in its header, without decoding it. Raises RequestError."""
    try:
        height, width = image_size(data, "The image")
    except UnsupportedPhotoError as error:
        what = str(error).removeprefix("The image: ").removeprefix("is ")
        raise RequestError(415, f"This is {what}") from None
    except PhotoError as error:
        raise RequestError(422, str(error)) from error
    if width * height > max_pixels:
        limit = math.floor(max_pixels / 1e5) / 10
        raise RequestError(
            422,
            f"The image has more than {limit:g} million pixels, the limit of this service. Make it smaller.",
        )


async def _unless_disconnected(
    request: Request, restoring: Awaitable[RestoredImage | RestoreFailure], seconds: float
) -> RestoredImage | RestoreFailure:
    """Return the result of `restoring`; raises TimeoutError, and ClientDisconnect when the client disconnects."""
    work = asyncio.ensure_future(restoring)
    disconnected = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, disconnected}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if disconnected.done():
            raise ClientDisconnect
        raise TimeoutError
    finally:
        disconnected.cancel()
        work.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _waits(request: Request) -> bool:
    """Return whether the client sends its body only after `100 Continue`, which the first read of the body sends."""
    return request.headers.get("expect", "").lower() == "100-continue"


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    content = {"status": status, "error": message}
    return JSONResponse(content, status_code=status, headers={**NOSNIFF, **(headers or {})})


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405 and request.method == "OPTIONS":
        return Response(
            status_code=204, headers=error.headers
        )  # `Allow`; no CORS: other sites are not served
    return _error(error.status_code, error.detail, dict(error.headers or {}))


async def _internal_error(request: Request, error: Exception) -> Response:
    return _error(500, "Internal error of the service; its log has the traceback.")
