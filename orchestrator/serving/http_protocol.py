"""The HTTP connections of `mirage serve`: uvicorn's, with limits for slow clients and errors in JSON.

uvicorn waits without limit for the head of a request, for the rest of a body that nobody reads, and for a client that
does not read its answer. It answers broken requests with text, and logs a traceback if the client had sent a good head.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""Time for the head of a request, from the connection or its first byte."""
DISCARD_SECONDS = 10.0
"""Time for the rest of a request that was answered before it had arrived."""
STALL_SECONDS = 10.0
MIN_BYTES_PER_SECOND = 4096.0
"""A client must read its answer at this rate, measured over STALL_SECONDS."""
MAX_CONNECTIONS = 512
"""With more, the connection that has been sending its request for the longest time is closed."""
_CLOSING_SECONDS = 2.0


class HttpProtocol(H11Protocol):
    """One connection."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._began = 0.0
        self._waits_for = ""
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._closing = False

    @property
    def is_sending(self) -> bool:
        """Whether the client has yet to send all of a request."""
        return not self._closing and self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin the time of the first head; make room if there are too many connections."""
        super().connection_made(transport)
        self._began = time.monotonic()
        self._watch()
        if len(self.connections) > MAX_CONNECTIONS:
            sending = [
                each for each in self.connections if isinstance(each, HttpProtocol) and each.is_sending
            ]
            oldest = min(sending, key=lambda each: each._began, default=self)
            oldest.refuse(503, "There are too many connections.")

    def connection_lost(self, exc: Exception | None) -> None:
        """End the timers."""
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass data on, unless the connection is being closed."""
        if self._closing:
            return
        if self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is not None:
            self._began = time.monotonic()
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Begin the time for what the client still sends."""
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not valid HTTP; uvicorn calls this while it handles the error."""
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        self.refuse(status, f"This is not valid HTTP: {error or msg}.")

    def refuse(self, status: int, message: str) -> None:
        """Answer what the client is sending with an error, and close the connection.

        The application learns that its client has left; an answer that has begun is cut.
        """
        if self._closing:
            return
        begun = False
        if self.cycle is not None and not self.cycle.response_complete:
            begun = self.cycle.response_started
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if begun or self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        body = json.dumps({"status": status, "error": message}).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("x-content-type-options", "nosniff"),
            ("connection", "close"),
        ]
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self._close_after_reading()

    def _close_after_reading(self) -> None:
        """Close once the client has, or soon: closing with data unread would destroy the answer on its way."""
        self._closing = True
        self._set_timer(_CLOSING_SECONDS)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    # ------------------------------------------------------------------------------ slow senders

    def _watch(self) -> None:
        """Start the time limit of the part that the client sends now, unless it already runs."""
        if self._closing:
            return
        waits_for = ""
        if self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None:
            waits_for = "head"
        elif self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:
            waits_for = "rest"
        if waits_for != self._waits_for:
            self._waits_for = waits_for
            self._set_timer({"": None, "head": HEAD_SECONDS, "rest": DISCARD_SECONDS}[waits_for])

    def _set_timer(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._time_is_over)

    def _time_is_over(self) -> None:
        if self._waits_for == "head" and not self._closing and self.conn.trailing_data[0]:
            self.refuse(408, f"The head of the request did not arrive within {HEAD_SECONDS:g} s.")
        else:
            self.transport.close()

    # ------------------------------------------------------------------------------ slow readers

    def pause_writing(self) -> None:
        """Begin to measure how fast the client reads."""
        super().pause_writing()
        if self._write_timer is None:
            self._measure_reading(
                self.transport.get_write_buffer_size() + MIN_BYTES_PER_SECOND * STALL_SECONDS
            )

    def resume_writing(self) -> None:
        """End the measurement: the client has read nearly everything."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _measure_reading(self, before: float) -> None:
        left = self.transport.get_write_buffer_size()
        if before - left < MIN_BYTES_PER_SECOND * STALL_SECONDS:
            self.transport.abort()
            return
        self._write_timer = self.loop.call_later(STALL_SECONDS, self._measure_reading, left)
