"""How the tests are shared out to processes, and which skips CI allows."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("tests.claims")

os.environ.setdefault("MIRAGE_STORE_RETRY_MINUTES", "0.05")  # a store that is meant to be away is told soon

# How long examples take says how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture
def tiny_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register three operators of degradations that cost nothing."""
    from shards.degradations.operator import OPERATORS
    from tests.tiny_operators import TINY

    for name, one in TINY.items():
        monkeypatch.setitem(OPERATORS, name, one)


ALLOWED_SKIPS = {
    "needs a CUDA GPU": "CI has no GPU; tests/gpu runs on machines that have one (docs/benchmarks.md)",
    "root may write anywhere": "CI runs as root in a container",
    "no file system can be mounted here": "containers may refuse user namespaces",
}
"""What a skip's reason begins with, and why CI may skip for it."""


LONGEST = (
    "test_engines",
    "test_fuzz",
    "slow/test_page",
    "test_loader",
    "test_loop",
    "test_notebooks",
    "test_compile",
)
"""Files whose slow tests take a minute or more. With `--no-loadscope-reorder` they start first, so that none is left
running alone at the end."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file in one process, and those of several files that share a server (`xdist_group`)."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))
    items.sort(key=_priority)


def _priority(item: pytest.Item) -> int:
    places = (i for i, name in enumerate(LONGEST) if f"{name}.py::" in item.nodeid)
    return next(places, len(LONGEST)) if item.get_closest_marker("slow") else len(LONGEST)


def forbidden_skip(reason: str) -> bool:
    """Return whether CI must not skip a test for this reason."""
    return not reason.removeprefix("Skipped: ").startswith(tuple(ALLOWED_SKIPS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _checked((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _checked((yield))


def _checked(report):
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") == "true":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if forbidden_skip(reason):
            report.outcome = "failed"
            rule = "CI must not skip a test for this reason; tests/conftest.py lists those that it may."
            report.longrepr = f"{reason}\n{rule}"
    return report
