"""Connect the driver of a run with its workers through a relay actor.

Workers send events, report that they have started, and read the control signal. The driver alone prints and tracks,
and no worker waits for either.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import ray

from orchestrator.events import (
    CheckpointWritten,
    Event,
    LogMessage,
    NodesDraining,
    WorkersHung,
    WorkerTerminated,
)
from orchestrator.training.driver import ControlSignal, Driver
from orchestrator.training.worker_signals import SigtermFlag

if TYPE_CHECKING:
    from orchestrator.training.ray_session import (
        RaySession,
    )  # imports ray.train, which the relay need not wait for

Group = tuple[int, int, dict[int, str]]
"""Number of a group of workers, its size, and its workers' nodes by rank."""

Failure = tuple[int, str]
"""Number of the group that failed for a reason that a restart cannot cure, and that reason; (0, "") if none did."""


class DriverRelay:
    """An actor between driver and workers.

    Ray starts it again if its process dies. Driver and workers then tell it all it knew, except the events that the
    driver had not collected, at most those of the last half second.
    """

    def __init__(self) -> None:
        self._signal = ControlSignal.CONTINUE
        self._failure: Failure = (0, "")
        self._events: list[Event] = []
        self._members: dict[int, str] = {}
        self._world_size = 0
        self._groups = 0
        self._left: set[int] = set()
        """Ranks of the group that ended by themselves."""
        self._timed_out = False
        """Whether one of them had waited for another for too long."""
        self._knows_driver = False

    def join(self, rank: int, world_size: int, node: str) -> int:
        """Register a started worker and return the number of its group.

        The first worker of a group replaces the group before.
        """
        if rank in self._members or world_size != self._world_size:
            self._events += self.hung()
            self._left, self._timed_out = set(), False
            self._members, self._world_size = {}, world_size
            self._groups += 1
        self._members[rank] = node
        return self._groups

    def leave(self, rank: int, group: int, timed_out_waiting: bool) -> None:
        """Note that a worker ends, and whether it had waited for another for too long."""
        if group == self._groups:
            self._left.add(rank)
            self._timed_out |= timed_out_waiting

    def hung(self) -> list[Event]:
        """Return an event with the workers that others timed out waiting for and that have not ended by themselves."""
        hung = sorted(self._members.keys() - self._left)
        if not (hung and self._timed_out):
            return []
        return [WorkersHung(tuple(hung), tuple(self._members[rank] for rank in hung))]

    def group(self) -> Group:
        """Return the newest group; its number is that of the groups so far."""
        return self._groups, self._world_size, dict(self._members)

    def exchange(self, events: list[Event], group: Group | None = None) -> ControlSignal:
        """Take a worker's events, and its group if it knows it, and return the control signal."""
        self._events += events
        if group is not None and self._knows_driver and group[0] >= self._groups:
            self._groups, self._world_size, self._members = group[0], group[1], dict(group[2])
        return self._signal

    def collect(
        self, signal: ControlSignal, groups: int, failure: Failure = (0, "")
    ) -> tuple[list[Event], Failure]:
        """Set the control signal; return the events since the previous call, and the newest failure.

        The driver knows of `groups` groups and of `failure`.
        """
        self._signal = signal
        self.fail(failure[1], failure[0])
        if not self._knows_driver:  # this process has just started; who joined it is a new group
            self._knows_driver, self._groups = True, groups + bool(self._members)
        events, self._events = self._events, []
        return events, self._failure

    def fail(self, message: str, group: int) -> None:
        """Record a failure of a group that a restart cannot cure; the first one of the newest group counts."""
        if group > self._failure[0]:
            self._failure = group, message

    def failure(self) -> str:
        """Return that failure, or "" if the newest group has none: workers that were replaced may fail late."""
        group, message = self._failure
        return message if group >= self._groups else ""


EXCHANGE_SECONDS = 1.0
"""Time between a worker's exchanges with its driver. One per step would fill Ray's list of tasks."""


class RemoteDriver:
    """The driver as a worker sees it: events are sent in the background, and replies read once they are there.

    Worker 0 asks for the control signal about once a second, and before each regular checkpoint, since a run that
    resumes from it does not repeat the events before it. The other workers only send their events. `session` tells
    Ray Train of checkpoints and returns its notices of nodes that leave.
    """

    def __init__(self, relay: Any, rank: int, checkpoint_every: int, session: RaySession) -> None:
        self._relay, self._rank, self._checkpoint_every = relay, rank, checkpoint_every
        self._session = session
        self._events: list[Event] = []
        self._exchange: Any = None
        self._next_exchange = 0.0
        self._signal = self._own_signal = ControlSignal.CONTINUE
        self._group: Group | None = None

    def emit(self, event: Event) -> None:
        """Queue an event for the next exchange."""
        self._events.append(event)
        if isinstance(event, CheckpointWritten):
            self._session.add_checkpoint(event)

    def control_signal(self, step: int) -> ControlSignal:
        """Return the newest signal from the driver, or RESTART if this process received SIGTERM or a node leaves."""
        draining = self._session.synchronize(step)
        if SigtermFlag.received:
            self._restart(WorkerTerminated(self._rank))
        if draining is not None:
            self._restart(draining if self._rank == 0 else None)
        if self._exchange is not None and ray.wait([self._exchange], timeout=0)[0]:
            self._signal, self._exchange = ControlSignal(ray.get(self._exchange)), None
        is_time = self._exchange is None and time.monotonic() >= self._next_exchange
        if (is_time or step % self._checkpoint_every == 0) and (self._rank == 0 or self._events):
            if self._rank == 0 and self._group is None:
                self._group = ray.get(self._relay.group.remote())  # complete: all workers have synchronized
            events, self._events = self._events, []
            self._next_exchange = time.monotonic() + EXCHANGE_SECONDS
            self._exchange = self._relay.exchange.remote(events, self._group)
        return max(self._signal, self._own_signal)

    def _restart(self, reason: WorkerTerminated | NodesDraining | None) -> None:
        if self._own_signal is ControlSignal.CONTINUE:
            self._own_signal = ControlSignal.RESTART
            if reason is not None:
                self.emit(reason)

    def flush(self) -> None:
        """Send the queued events and wait until they have arrived."""
        ray.get(self._relay.exchange.remote(self._events, self._group))
        self._events = []


class DriverLogHandler(logging.Handler):
    """Sends a worker's warnings to the driver."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(logging.WARNING)
        self._driver = driver

    def emit(self, record: logging.LogRecord) -> None:
        """Send a log record as an event."""
        self._driver.emit(LogMessage(record.getMessage(), record.levelname.lower()))  # type: ignore[arg-type]
