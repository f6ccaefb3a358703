"""The loop beside the routes: polls now and then, at once when told to, and ends from any thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest

from orchestrator.serving import monitor
from orchestrator.serving.alias_watcher import AliasWatcher
from orchestrator.serving.monitor import ServiceMonitor
from orchestrator.serving.settings import ServiceSettings
from tests.claims import wait_until


class Watcher:
    def __init__(self) -> None:
        self.polls = 0

    def poll(self) -> None:
        self.polls += 1


class Replicas:
    def __init__(self) -> None:
        self.counted = 0

    def count(self) -> None:
        self.counted += 1


@contextmanager
def looping(watcher: Watcher, poll_seconds: float) -> Iterator[tuple[ServiceMonitor, Replicas]]:
    replicas = Replicas()
    loop = ServiceMonitor(replicas.count, cast(AliasWatcher, watcher), poll_seconds)
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield loop, replicas
    loop.stop()
    thread.join(60)
    assert not thread.is_alive()


def test_it_polls_every_poll_seconds() -> None:
    watcher = Watcher()
    with looping(watcher, 0.01):
        wait_until(lambda: watcher.polls > 2, "three polls")


def test_it_looks_at_once_when_told_to_and_not_before() -> None:
    watcher = Watcher()
    with looping(watcher, 3600) as (loop, _):
        for number in (1, 2):
            loop.look_now()
            wait_until(lambda n=number: watcher.polls == n, "a look")
    assert watcher.polls == 2


def test_a_slow_poll_does_not_slow_down_the_count_of_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "POLL_SECONDS", 0.01)
    watcher = Watcher()
    with looping(watcher, 3600) as (_, replicas):
        wait_until(lambda: replicas.counted > 2, "three counts")
    assert watcher.polls == 0


def test_what_the_check_raises_ends_the_loop() -> None:
    def check() -> None:
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        ServiceMonitor(lambda: None, None, 0.01).run(check)


@pytest.mark.parametrize(
    ("poll", "has_webhook", "seconds"), [(None, False, 3), (None, True, 60), (7, True, 7)]
)
def test_polling_is_slower_with_a_webhook_unless_told_otherwise(
    poll: float | None, has_webhook: bool, seconds: float
) -> None:
    assert ServiceSettings(poll_seconds=poll).poll_interval(has_webhook) == seconds
