"""What the driver of a run and its workers tell each other, through one small actor.

Workers leave lines, scalars and pictures there, say that they have begun, and read what is wanted of them. So progress
comes out unprefixed, tracking happens in the driver alone, and no worker ever waits for either.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping
from types import FrameType
from typing import Any

import ray

from orchestrator.training.driver import Driver, Wish

Letter = tuple[str, tuple[Any, ...]]
"""Name of a method of `Driver`, and its arguments."""


class Mailbox:
    """The actor; it holds nothing that a restart would miss."""

    def __init__(self) -> None:
        self._wish = Wish.GO_ON
        self._failure = ""
        self._letters: list[Letter] = []
        self._members: dict[int, str] = {}
        self._world_size = 0
        self._groups = 0

    def join(self, rank: int, world_size: int, node: str) -> int:
        """Note that a worker has begun on a node, and return the number of its group.

        The first one of a group replaces the group before.
        """
        if rank in self._members or world_size != self._world_size:
            self._members, self._world_size = {}, world_size
            self._groups += 1
        self._members[rank] = node
        return self._groups

    def group(self) -> tuple[int, int, dict[int, str]]:
        """Return how many groups have begun, the newest one's size, and the nodes of its workers by rank."""
        return self._groups, self._world_size, self._members

    def turn(self, letters: list[Letter]) -> Wish:
        """Take a worker's letters and return what is wanted of it."""
        self._letters += letters
        return self._wish

    def collect(self) -> list[Letter]:
        """Return the letters that have come since the last time."""
        letters, self._letters = self._letters, []
        return letters

    def want(self, wish: Wish) -> None:
        """Set what the workers are to do."""
        self._wish = wish

    def fail(self, message: str) -> None:
        """Note a failure that trying again does not cure; the first one counts."""
        self._failure = self._failure or message

    def failure(self) -> str:
        """Return that failure, or ""."""
        return self._failure


class Distant:
    """The driver, as a worker sees it: messages go out in the background, and the answer is read when it is there."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._letters: list[Letter] = []
        self._turn: Any = None
        self._wish = Wish.GO_ON
        self._told = False

    def say(self, line: str) -> None:
        """Show a line."""
        self._letters.append(("say", (line,)))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Track scalars."""
        self._letters.append(("metrics", (step, dict(values))))

    def image(self, name: str, png: bytes, step: int) -> None:
        """Track a picture."""
        self._letters.append(("image", (name, png, step)))

    def wish(self, step: int) -> Wish:
        """Return what the driver said last, or that this process has to end."""
        own = Wish.REGROUP if Notice.received else Wish.GO_ON
        if own and not self._told:
            self._told = True
            self.say("a worker was told to end: the run writes a checkpoint and regroups")
        if self._turn is not None:
            ready, _ = ray.wait([self._turn], timeout=0)
            if not ready:
                return max(self._wish, own)
            self._wish = Wish(ray.get(self._turn))
        letters, self._letters = self._letters, []
        self._turn = self._mailbox.turn.remote(letters)
        return max(self._wish, own)

    def flush(self) -> None:
        """Send what is left and wait for it."""
        ray.get(self._mailbox.turn.remote(self._letters))
        self._letters = []


class Notice:
    """SIGTERM to a worker: its machine is about to go, so that it asks for a checkpoint instead of dying."""

    received = False

    @classmethod
    def listen(cls) -> None:
        """Take SIGTERM as a notice from now on; only the main thread may call it."""
        signal.signal(signal.SIGTERM, cls._note)

    @classmethod
    def _note(cls, number: int, frame: FrameType | None) -> None:
        cls.received = True


class ToDriver(logging.Handler):
    """Warnings of a worker reach whoever watches the run."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(logging.WARNING)
        self._driver = driver

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        self._driver.say(f"{record.levelname.lower()}: {record.getMessage()}")
