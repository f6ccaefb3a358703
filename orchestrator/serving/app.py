"""The routes. `POST /restore` asks, in order: the token, room, the bytes, the pixels, a replica."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from time import perf_counter
from typing import Any
from urllib.parse import quote

from PIL import Image, UnidentifiedImageError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from orchestrator.imaging.photos import DECODE_ERRORS, open_image
from orchestrator.serving import metrics
from orchestrator.serving.active_model import Shelf
from orchestrator.serving.admission import Room
from orchestrator.serving.auth import allows
from orchestrator.serving.backend import Backend, NoReplicaError
from orchestrator.serving.openapi import openapi
from orchestrator.serving.page import SAMPLES, page, samples
from orchestrator.serving.replica import Answer, Refusal
from orchestrator.serving.request_body import BodyError, read_body
from orchestrator.serving.settings import Settings

log = logging.getLogger(__name__)

CLIENT_GONE = 499
"""What the metrics count for a client that left; nobody reads it."""

_NO_TOKEN = "This service asks for a bearer token."
_ASK = {"WWW-Authenticate": 'Bearer realm="mirage"'}


class RefusedError(Exception):
    """A request that gets no image, with the status that says why."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


class Service:
    """One service: its model, its replicas, who is inside."""

    def __init__(self, settings: Settings, shelf: Shelf, backend: Backend, token: str | None) -> None:
        self.settings = settings
        self.shelf = shelf
        self.backend = backend
        self.room = Room(settings.queue)
        self.metrics = metrics.Metrics(settings.queue)
        self.draining = False
        self.registry_problem: Callable[[], str] = lambda: ""
        self._token = token
        self._openapi = openapi(settings, token is not None)
        self.app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/samples/{name}", self._sample),
                Route("/restore", self._restore, methods=["POST"]),
                Route("/health", self._health),
                Route("/model", self._model),
                Route("/metrics", self._metrics),
                Route("/openapi.json", self._describe),
            ],
            exception_handlers={HTTPException: _plain, Exception: _bug},
        )

    # -------------------------------------------------------------------------------------- restoring

    async def _restore(self, request: Request) -> Response:
        start, status = perf_counter(), 500  # what a bug is counted as
        try:
            response = await self._answer(request)
            status = response.status_code
        except (RefusedError, BodyError) as refused:
            status = refused.status
            response = _error(
                status, str(refused), refused.headers if isinstance(refused, RefusedError) else None
            )
        except ClientDisconnect:
            status = CLIENT_GONE
            response = Response(status_code=CLIENT_GONE)
        finally:
            self.metrics.answered(status, perf_counter() - start)
        return response

    async def _answer(self, request: Request) -> Response:
        chunks = request.stream()
        if not allows(self._token, request.headers.get("authorization")):
            await _read_on(chunks, self.settings)
            raise RefusedError(401, _NO_TOKEN, _ASK)
        if not self.room.enter():
            await _read_on(chunks, self.settings)
            wait = self.room.retry_after(self.backend.replicas)
            raise RefusedError(
                429,
                f"{self.room.capacity} requests are inside already. Come back in {wait} s.",
                {"Retry-After": str(wait)},
            )
        busy = None
        try:
            data = await self._receive(request, chunks)
            await asyncio.to_thread(check_header, data, self.settings.max_pixels)
            answer = await self._restored(data, request)
            busy = answer[0].seconds["restore"] / answer[0].batch
        finally:
            self.room.leave(busy)
        restored, label = answer
        self.metrics.restored(restored)
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

    async def _receive(self, request: Request, chunks: AsyncIterator[bytes]) -> bytes:
        head = request.headers
        reading = read_body(
            chunks, head.get("content-length"), head.get("content-type", ""), self.settings.max_bytes
        )
        try:
            return await asyncio.wait_for(reading, self.settings.upload_seconds)
        except TimeoutError:
            raise RefusedError(
                408, f"The image did not arrive within {self.settings.upload_seconds:g} s."
            ) from None

    async def _restored(self, data: bytes, request: Request) -> tuple[Answer, str]:
        """Return the answer and the label of the model that gave it."""
        deadline = asyncio.get_running_loop().time() + self.settings.timeout_seconds
        while True:
            model = self.shelf.current
            left = deadline - asyncio.get_running_loop().time()
            try:
                got = await _unless_gone(request, self.backend.restore(data, model), left)
            except TimeoutError:
                raise RefusedError(
                    504,
                    f"Restoring took longer than {self.settings.timeout_seconds:g} s. Send a smaller image.",
                ) from None
            except NoReplicaError as error:
                raise RefusedError(503, str(error), {"Retry-After": "5"}) from error
            if isinstance(got, Answer):
                return got, model.label
            if got.fault == "file":
                raise RefusedError(422, got.reason)
            if not self.shelf.distrust(model, got.reason):
                raise RefusedError(500, got.reason)

    # -------------------------------------------------------------------------------------- telling

    def state(self) -> dict[str, Any]:
        """Return what /health says."""
        refused = self.shelf.refused
        return {
            "status": "draining" if self.draining else "ok",
            "model": self.shelf.current.label,
            "refused": {"version": refused.version, "reason": refused.reason} if refused else None,
            "registry": self.registry_problem() or "ok",
            "replicas": self.backend.replicas,
            "inside": self.room.inside,
            "room": self.room.capacity,
        }

    async def _health(self, request: Request) -> Response:
        return JSONResponse(self.state(), status_code=503 if self.draining else 200)

    async def _model(self, request: Request) -> Response:
        limits = {"max_bytes": self.settings.max_bytes, "max_pixels": self.settings.max_pixels}
        return JSONResponse(
            {**self.shelf.current.facts(), **limits, "token": self._token is not None},
            headers={"Cache-Control": "no-store"},
        )

    async def _metrics(self, request: Request) -> Response:
        if not allows(self._token, request.headers.get("authorization")):
            return _error(401, _NO_TOKEN, _ASK)
        text = self.metrics.text(
            inside=self.room.inside,
            replicas=self.backend.replicas,
            retries=self.backend.retries,
            model=self.shelf.current,
            refused=self.shelf.refused is not None,
        )
        return Response(text, media_type=metrics.CONTENT_TYPE)

    async def _describe(self, request: Request) -> Response:
        return JSONResponse(self._openapi)

    async def _page(self, request: Request) -> Response:
        return Response(page().html, media_type="text/html", headers=page().headers)

    async def _sample(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in {sample["file"] for sample in samples()}:
            return _error(404, f"There is no sample {name}.")
        return FileResponse(SAMPLES / name, headers={"Cache-Control": "max-age=86400"})


def check_header(data: bytes, max_pixels: int) -> None:
    """Look at an image's header, not at its pixels. Raises RefusedError for what is no image, and for a bomb."""
    try:
        with open_image(data) as image:
            width, height = image.size
    except UnidentifiedImageError:
        raise RefusedError(
            415, "This is not a JPEG, PNG, TIFF, WebP or BMP image. Convert it to one first."
        ) from None
    except Image.DecompressionBombError:
        width, height = max_pixels, 2  # more than Pillow itself reads
    except DECODE_ERRORS as error:
        raise RefusedError(422, f"The image is damaged or incomplete ({error}).") from error
    if width * height > max_pixels:
        raise RefusedError(
            422,
            f"The image has more than {math.floor(max_pixels / 1e5) / 10:g} million pixels, which this service "
            "does not take. Make it smaller.",
        )


async def _unless_gone(
    request: Request, working: Awaitable[Answer | Refusal], seconds: float
) -> Answer | Refusal:
    """Return what `working` gives. Raises TimeoutError, and ClientDisconnect when nobody waits for it any more."""
    work = asyncio.ensure_future(working)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if gone.done():
            raise ClientDisconnect
        raise TimeoutError
    finally:
        gone.cancel()
        work.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read_on(chunks: AsyncIterator[bytes], settings: Settings) -> None:
    """Read what a refused client sends, and drop it: it would not see the answer before it has sent all."""
    try:
        async with asyncio.timeout(settings.upload_seconds):
            length = 0
            async for chunk in chunks:
                length += len(chunk)
                if length > settings.max_bytes:
                    return
    except TimeoutError:
        return


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"status": status, "error": message}, status_code=status, headers=headers)


async def _plain(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail, dict(error.headers or {}))


async def _bug(request: Request, error: Exception) -> Response:
    return _error(500, "The service has a bug; its log has the traceback.")
