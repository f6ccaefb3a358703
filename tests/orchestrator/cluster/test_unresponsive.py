"""A dashboard or a head that does not answer is told in a line, and stops nothing that can go on."""

from __future__ import annotations

import logging
import socket

import pytest
from ray.util.state.exception import ServerUnavailable

from orchestrator.cluster import connection, placement_groups
from tests.claims import wait_until


def test_a_dashboard_that_does_not_answer_keeps_no_run_from_starting(monkeypatch, caplog) -> None:
    def unavailable() -> list[str]:
        raise ServerUnavailable("Failed to make request to http://127.0.0.1:8265.\nMake sure ...\n" * 20)

    monkeypatch.setattr(placement_groups, "leaked_groups", unavailable)
    assert placement_groups.free_leaked_groups() == 0
    assert len(caplog.messages) == 2, "it is asked again"
    assert all("dashboard does not answer" in line and "\n" not in line for line in caplog.messages)


def test_a_dashboard_that_answers_the_second_time_is_used(monkeypatch) -> None:
    answers = iter([ServerUnavailable("busy"), []])

    def sometimes() -> list[str]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(placement_groups, "leaked_groups", sometimes)
    assert placement_groups.free_leaked_groups() == 0
    assert next(answers, None) is None


def test_a_lost_head_is_told_once_with_what_to_do_next(monkeypatch, caplog) -> None:
    monkeypatch.setattr(connection, "_HEAD_SECONDS", 0.01)
    caplog.set_level(logging.WARNING)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with connection._head_watched(address):
            accepted, _ = head.accept()
            accepted.close()
            assert caplog.messages == []
            head.close()
            wait_until(lambda: caplog.messages, "the loss is told")
    (line,) = caplog.messages
    assert address in line
    assert "submit the job again" in line


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_addresses_of_both_kinds_can_be_watched(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = socket.create_server((host.strip("[]"), 0), family=family)
    except OSError:
        assert family == socket.AF_INET6, "loopback has IPv4"
        return
    with server:
        assert connection._listens(host, server.getsockname()[1])
    assert not connection._listens(host, 1)
