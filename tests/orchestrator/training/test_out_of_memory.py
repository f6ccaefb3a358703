"""Memory that runs out is named, with what to do, and costs steps but no bits."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
import typer
from ray.exceptions import OutOfMemoryError

from orchestrator import cli
from orchestrator.cli.memory_advice import _OF_OPTION, OF_KIND, find_advice, memory_advice
from orchestrator.config.job_types import KINDS, JobOutcome
from orchestrator.errors import TRAINING_MEMORY_ADVICE, is_out_of_memory
from orchestrator.training.driver import ControlSignal
from orchestrator.training.ray_launcher import _root_cause
from tests.claims import assert_same_weights, final_weights
from tests.orchestrator.training.test_loop import Listener, run

TOO_MANY = 1 << 60
REQUESTS: list[Callable[[], object]] = [
    lambda: bytearray(TOO_MANY),
    lambda: torch.empty(TOO_MANY, dtype=torch.uint8),
    lambda: np.empty(TOO_MANY, np.uint8),
    lambda: mmap.mmap(-1, TOO_MANY),
]
RAYS_WORDS = (
    "Task was killed due to the node running low on memory.\n"
    "Memory on the node (IP: 10.0.0.1) was 29.44GB / 30.98GB (0.950292), which exceeds the memory usage threshold.\n"
    "To disable worker killing, set the environment variable `RAY_memory_monitor_refresh_ms` to zero."
)


def failure_of(request: Callable[[], object]) -> BaseException:
    with pytest.raises((MemoryError, RuntimeError, OSError)) as raised:
        request()
    return raised.value


@pytest.mark.parametrize("request_memory", REQUESTS)
def test_the_command_line_names_what_ran_out_in_one_line(
    request_memory: Callable[[], object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "app", lambda **_: request_memory())
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("memory ran out: ")
    assert text.count("\n") == 1


def test_the_advice_fits_the_kind_of_job_or_the_options_of_the_command() -> None:
    assert OF_KIND.keys() == KINDS.keys()
    for kind, advice in OF_KIND.items():
        with pytest.raises(MemoryError) as raised, memory_advice(kind):
            bytearray(TOO_MANY)
        assert find_advice(raised.value, ["run", "a.yaml", "--in-process"]) == advice
    for words, word in (
        ("restore a.png -m x", "--tile"),
        ("pack synthetic --root x", "--processes"),
        ("serve x", "--max-batch"),
        ("trace x", "Close other programs"),
        ("", "Close other programs"),
        ("webhooks list", "Close other programs"),
    ):
        assert word in find_advice(MemoryError(), words.split()), words


def test_the_advice_names_options_that_exist() -> None:
    commands = typer.main.get_command(cli.app).commands.values()  # type: ignore[attr-defined]
    groups = [*commands, *(inner for each in commands for inner in getattr(each, "commands", {}).values())]
    options = {name for command in groups for parameter in command.params for name in parameter.opts}
    assert _OF_OPTION.keys() <= options


def test_workers_that_ran_out_of_memory_say_so_wherever_they_were_killed() -> None:
    for error in (OutOfMemoryError(RAYS_WORDS), *map(failure_of, REQUESTS)):
        assert is_out_of_memory(error)
        assert _root_cause(error).startswith("memory ran out: ")
        assert _root_cause(error).endswith(TRAINING_MEMORY_ADVICE)
    assert "Memory on the node" in _root_cause(OutOfMemoryError(RAYS_WORDS))
    killed = _root_cause(
        RuntimeError("It died.\nPossible causes: (1) killed by SIGKILL by OOM killer (2) ...")
    )
    assert "`dmesg`" in killed
    assert _root_cause(RuntimeError("another\nreason")) == "RuntimeError: reason"
    assert not is_out_of_memory(ValueError(f"memory_gib is {sys.maxsize}"))


def test_a_run_whose_memory_runs_out_resumes_with_the_same_bits(small_job, small_data, tmp_path) -> None:
    class Greedy(Listener):
        def control_signal(self, step: int) -> ControlSignal:
            return ControlSignal.CONTINUE if step < 5 else torch.empty(TOO_MANY)

    run(small_job(), small_data, tmp_path / "undisturbed")
    with pytest.raises(RuntimeError) as raised:
        run(small_job(), small_data, tmp_path / "run", Greedy())
    assert is_out_of_memory(raised.value)
    again = Listener()
    assert run(small_job(), small_data, tmp_path / "run", again) == JobOutcome("finished", 6, 6)
    assert again.resumed_at() == [4]
    assert_same_weights(final_weights(tmp_path / "run"), final_weights(tmp_path / "undisturbed"))
