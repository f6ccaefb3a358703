"""The run: it resumes exactly, survives damage, and does not depend on how many workers share it."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mirage import MIRAGE, compile
from orchestrator.config.identity import run_id
from orchestrator.config.job_types import JobOutcome
from orchestrator.config.loader import dump_job, job_from_mapping
from orchestrator.config.schema import EngineChoice, Job
from orchestrator.data import datasets
from orchestrator.errors import CheckpointError, TrainingError
from orchestrator.events import Event, Image, LogMessage, Measured, Resumed
from orchestrator.maintenance.sample_ledger import consumed
from orchestrator.run_files import RESULT, RETENTION_RULE
from orchestrator.training.checkpoint import Retention
from orchestrator.training.driver import ControlSignal
from orchestrator.training.engines.base import Engine
from orchestrator.training.engines.factory import engine_for
from orchestrator.training.loop import train
from shards.dataset import Dataset
from shards.errors import LedgerError
from shards.ledger import LedgerReader
from shards.store import LocalStore
from tests.claims import assert_same_weights, assert_unchanged, final_weights
from tests.processes import run_processes
from tests.tiny_operators import PIPELINES

CPU = torch.device("cpu")


class Listener:
    """A driver that remembers what it was told, and asks to stop after a number of steps."""

    def __init__(self, stop_after: int | None = None, signal: ControlSignal = ControlSignal.STOP) -> None:
        self.events: list[Event] = []
        self.scalars: dict[int, dict[str, float]] = {}
        self.pictures: dict[int, bytes] = {}
        self._left = stop_after
        self._signal = signal

    def emit(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Measured):
            self.scalars.setdefault(event.step, {}).update(event.metrics)
        elif isinstance(event, Image):
            self.pictures[event.step] = event.png

    def resumed_at(self) -> list[int]:
        return [event.step for event in self.events if isinstance(event, Resumed)]

    def warnings(self) -> list[str]:
        return [e.text for e in self.events if isinstance(e, LogMessage) and e.level == "warning"]

    def control_signal(self, step: int) -> ControlSignal:
        if self._left is None:
            return ControlSignal.CONTINUE
        self._left -= 1
        return ControlSignal.CONTINUE if self._left > 0 else self._signal


def run(
    job: Job, dataset: Dataset, folder: Path, driver: Listener | None = None, engine=None, turn=None
) -> JobOutcome:
    torch.set_num_threads(1)
    return train(job, dataset, LocalStore(folder), engine or Engine(CPU), driver or Listener(), "test", turn)


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


@pytest.fixture
def uninterrupted(small_job, small_data, tmp_path) -> dict[str, Tensor]:
    folder = tmp_path / "uninterrupted"
    assert run(small_job(), small_data, folder) == JobOutcome("finished", 6, 6)
    return final_weights(folder)


def test_a_run_tells_its_terms_its_rates_and_its_quality(small_job, small_data, tmp_path) -> None:
    driver = Listener()
    run(small_job(track={"system_metrics_seconds": 1e6}), small_data, tmp_path, driver)
    assert sorted(driver.scalars) == [2, 3, 4, 6]
    assert {"loss/total", "loss/l1", "loss/fourier", "loss/spd", "optim/lr", "optim/grad_norm"} <= set(
        driver.scalars[2]
    )
    assert "val/5deg/haze/psnr" in driver.scalars[3]
    assert driver.pictures[3].startswith(b"\x89PNG")
    job = small_job()
    terms = driver.scalars[6]
    total = (
        terms["loss/l1"]
        + job.loss.fourier_weight * terms["loss/fourier"]
        + job.loss.spd_weight * terms["loss/spd"]
    )
    assert terms["loss/total"] == pytest.approx(total, rel=1e-5)


def test_a_resumed_run_is_bit_equal(small_job, small_data, tmp_path, uninterrupted) -> None:
    folder = tmp_path / "stopped"
    assert run(small_job(), small_data, folder, Listener(stop_after=2)) == JobOutcome("stopped", 2, 6)
    driver = Listener()
    assert run(small_job(), small_data, folder, driver) == JobOutcome("finished", 6, 6)
    assert driver.resumed_at() == [2]
    assert_same_weights(final_weights(folder), uninterrupted)
    (weights,) = (folder / "weights").iterdir()
    assert (
        tmp_path / "uninterrupted" / "weights" / weights.name
    ).is_file()  # named by the digest of its bytes


@pytest.fixture
def without_compiler(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which torch.compile finds nothing to compile with."""
    from torch._inductor.cpp_builder import cpp_compiler_search

    found = (compile.compiler_error, cpp_compiler_search)
    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path / "empty"))
        for each in found:
            each.cache_clear()
        yield
    for each in found:
        each.cache_clear()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_without_a_compiler_a_run_says_so_once_and_gives_the_same_bits(
    small_job, small_data, tmp_path, uninterrupted, without_compiler: None
) -> None:
    driver = Listener()
    run(small_job(train={"compile": "blocks"}), small_data, tmp_path / "eager", driver)
    (warning,) = driver.warnings()
    assert "No working C++ compiler" in warning
    assert_same_weights(final_weights(tmp_path / "eager"), uninterrupted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler raises warnings that it hides itself
def test_a_run_goes_on_with_compiled_blocks_to_the_same_weights(
    small_job, small_data, tmp_path, uninterrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The compiler's front end alone: tests/mirage/test_compile.py compares what the whole compiler generates.
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    torch._dynamo.utils.counters.clear()
    assert run(small_job(), small_data, tmp_path / "run", Listener(stop_after=2)).step == 2
    assert not torch._dynamo.utils.counters["stats"]
    job, driver = small_job(train={"compile": "blocks"}), Listener()
    assert run(job, small_data, tmp_path / "run", driver) == JobOutcome("finished", 6, 6)
    assert driver.resumed_at() == [2]
    assert not driver.warnings()
    found = final_weights(tmp_path / "run")
    assert found.keys() == uninterrupted.keys()
    a, b = (torch.cat([w[name].double().flatten() for name in sorted(found)]) for w in (found, uninterrupted))
    assert float((a - b).norm() / b.norm()) < 1e-4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 4  # a level of the network each


def test_a_deterministic_run_is_the_same_run_and_leaves_torch_as_it_was(
    small_job, small_data, tmp_path, uninterrupted
) -> None:
    class Curious(Listener):
        def control_signal(self, step: int) -> ControlSignal:
            assert torch.are_deterministic_algorithms_enabled()
            return super().control_signal(step)

    job = small_job(train={"deterministic": True})
    assert run(job, small_data, tmp_path / "first", Curious(3)).status == "stopped"
    assert not torch.are_deterministic_algorithms_enabled()
    assert run(job, small_data, tmp_path / "first", Curious()).status == "finished"
    assert_same_weights(final_weights(tmp_path / "first"), uninterrupted)


def test_a_run_that_writes_at_every_step_can_be_stopped_too(
    small_job, small_data, tmp_path, uninterrupted
) -> None:
    job = small_job(checkpoint={"every_steps": 1, "keep": 2})
    assert run(job, small_data, tmp_path / "often", Listener(stop_after=2)) == JobOutcome("stopped", 2, 6)
    run(job, small_data, tmp_path / "often")
    assert_same_weights(final_weights(tmp_path / "often"), uninterrupted)


def test_a_damaged_checkpoint_is_passed_over_loudly(
    small_job, small_data, tmp_path, uninterrupted, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "damaged"
    run(small_job(), small_data, folder, Listener(stop_after=4))
    newest = max((folder / "checkpoints").iterdir())
    blob = folder / "blobs" / f"{json.loads(newest.read_bytes())['blobs']['model']}.safetensors"
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(content)
    driver = Listener()
    with caplog.at_level(logging.WARNING):
        run(small_job(), small_data, folder, driver)
    assert "is damaged; trying the one before" in caplog.text
    assert driver.resumed_at() == [2]
    assert_same_weights(final_weights(folder), uninterrupted)


def test_a_truncated_checkpoint_record_is_passed_over(small_job, small_data, tmp_path, uninterrupted) -> None:
    folder = tmp_path / "truncated"
    run(small_job(), small_data, folder, Listener(stop_after=4))
    newest = max((folder / "checkpoints").iterdir())
    newest.chmod(0o644)
    newest.write_bytes(newest.read_bytes()[:100])
    run(small_job(), small_data, folder)
    assert_same_weights(final_weights(folder), uninterrupted)


def test_another_runs_checkpoint_is_not_taken(small_job, small_data, tmp_path) -> None:
    run(small_job(), small_data, tmp_path, Listener(stop_after=2))
    other = small_job(seed=1)
    assert run_id(other, small_data.digests) != run_id(small_job(), small_data.digests)
    from orchestrator.training.checkpoint import Checkpoints, Retention, RunIdentity

    checkpoints = Checkpoints(
        LocalStore(tmp_path),
        RunIdentity(run_id(other, small_data.digests), tuple(small_data.digests)),
        keep=Retention(2),
    )
    with pytest.raises(CheckpointError, match="Give the job another name"):
        checkpoints.load_newest()


def test_where_and_how_fast_it_runs_leaves_it_the_same_run(small_job, small_data) -> None:
    moved = small_job(workers={"min": 2, "max": 3}, checkpoint={"every_steps": 1}, storage="elsewhere")
    assert run_id(moved, small_data.digests) == run_id(small_job(), small_data.digests)


def test_another_order_of_the_mixture_is_another_run_as_its_samples_come_in_another_order(
    small_job, small_data
) -> None:
    job = small_job()
    turned = job.model_copy(
        update={
            "data": job.data.model_copy(update={"mixture": dict(reversed(list(job.data.mixture.items())))})
        }
    )
    assert turned == job
    streams = [datasets.train_stream(small_data, each) for each in (job, turned)]
    one, other = ([batch.degradations for batch in stream.steps(0, 1, 0, 60)] for stream in streams)
    assert one != other
    assert run_id(turned, small_data.digests) != run_id(job, small_data.digests)


def test_old_checkpoints_go_and_the_best_stays(small_job, small_data, tmp_path) -> None:
    run(small_job(checkpoint={"every_steps": 1, "keep": 2}), small_data, tmp_path)
    records = [json.loads(p.read_bytes()) for p in sorted((tmp_path / "checkpoints").iterdir())]
    steps = [r["step"] for r in records]
    assert steps[-2:] == [5, 6]
    assert len(steps) <= 3
    named = {blob for r in records for blob in r["blobs"].values()}
    assert {p.stem for p in (tmp_path / "blobs").iterdir()} == named


class Poisoned(Engine):
    """An engine whose second step has a gradient that is not finite."""

    steps = 0

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float | None) -> Tensor:
        self.steps += 1
        if self.steps == 2 and parameters[0].grad is not None:
            parameters[0].grad.fill_(float("nan"))
        return super().clip(parameters, max_norm)


def test_a_step_without_a_finite_gradient_is_skipped_and_counted(small_job, small_data, tmp_path) -> None:
    driver = Listener()
    run(small_job(), small_data, tmp_path, driver, Poisoned(CPU))
    assert driver.scalars[6]["optim/skipped_steps"] == 1
    assert all(torch.isfinite(t).all() for t in final_weights(tmp_path).values())


def test_without_the_spd_term_its_head_stays_still(small_job, small_data, tmp_path) -> None:
    driver = Listener()
    job = small_job(loss={"spd_weight": 0.0})
    run(job, small_data, tmp_path, driver)
    assert driver.scalars[6]["loss/spd"] == 0
    torch.manual_seed(job.seed)
    untouched = MIRAGE(job.model.build()).state_dict()
    moved = {
        name for name, tensor in final_weights(tmp_path).items() if not torch.equal(tensor, untouched[name])
    }
    assert moved
    assert not {name for name in moved if name.startswith("spd_")}


class Dazzled(Engine):
    """An engine whose second step sees an image that is not finite."""

    steps = 0

    def wrap(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        def spoil(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.steps += 1
            if self.steps == 2:
                inputs[0][0, 0, 0, 0] = float("inf")

        model.register_forward_pre_hook(lambda m, x: spoil(m, x) if m.training else None)
        return model


def test_an_image_that_is_not_finite_leaves_no_trace_in_the_statistics(
    small_job, small_data, tmp_path
) -> None:
    driver = Listener()
    run(small_job(), small_data, tmp_path, driver, Dazzled(CPU))
    assert driver.scalars[6]["optim/skipped_steps"] == 1
    assert all(torch.isfinite(t).all() for t in final_weights(tmp_path).values())


class Hopeless(Engine):
    """An engine that never sees a finite gradient."""

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float | None) -> Tensor:
        return torch.tensor(float("nan"))


def test_a_run_without_finite_gradients_is_given_up(small_job, small_data, tmp_path) -> None:
    job = small_job(train={"steps": 150}, validation={"every_steps": 1000})
    with pytest.raises(
        TrainingError, match=r"100 steps in a row were not finite \(step 100\): the run has diverged"
    ):
        run(job, small_data, tmp_path, None, Hopeless(CPU))
    assert not (tmp_path / RESULT).exists()


def test_a_finished_run_is_left_alone(small_job, small_data, tmp_path, uninterrupted) -> None:
    folder = tmp_path / "uninterrupted"
    with assert_unchanged(folder):
        run(small_job(), small_data, folder)


def _worker(rank: int, world: int, job: str, home: str, folder: str, meeting: str, stop: int = 0) -> None:
    import os

    os.environ.update(MIRAGE_HOME=home, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    parsed = job_from_mapping(json.loads(job))
    dataset = datasets.open_dataset(parsed)
    driver = Listener(stop_after=stop or None)
    train(parsed, dataset, LocalStore(Path(folder)), engine_for(parsed, CPU), driver, "test")
    dist.destroy_process_group()


@pytest.mark.parametrize(("world", "micro_batches"), [(4, 1), (2, 2)])
def test_workers_share_a_run_without_changing_it(
    small_job, small_data, tmp_path, at_home, world: int, micro_batches: int
) -> None:
    job = small_job(train={"micro_batches": micro_batches}, workers={"max": 3})
    alone = tmp_path / "alone"
    run(job, small_data, alone)
    shared = tmp_path / "shared"
    values = job.model_dump(mode="json", exclude_none=True)
    run_processes(
        _worker, world, world, json.dumps(values), str(at_home), str(shared), str(tmp_path / "meeting")
    )
    expected, found = final_weights(alone), final_weights(shared)
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=2e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.slow
def test_a_checkpoint_goes_on_under_any_engine_stage_and_number_of_workers(
    small_job, small_data, tmp_path, at_home
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    base = small_job(train={"ema_decay": 0.9}, workers={"max": 3})
    run(base, small_data, alone)
    relay = [("deepspeed", 2, 2, 2), ("deepspeed", 3, 3, 2), ("ddp", 0, 2, 1), ("deepspeed", 3, 2, 0)]
    for engine, stage, world, stop in relay:  # stop: after that many steps; 0 runs to the end
        job = base.model_copy(update={"engine": EngineChoice(name=engine, zero_stage=stage)})
        values = json.dumps(job.model_dump(mode="json", exclude_none=True))
        meeting = str(tmp_path / f"meeting-{engine}-{stage}-{world}")
        run_processes(
            *(_worker, world, world, values, str(at_home), str(shared), meeting, stop), also=["deepspeed"]
        )
    expected, found = flat(final_weights(alone)), flat(final_weights(shared))
    torch.manual_seed(base.seed)
    moved = expected - flat(MIRAGE(base.model.build()).state_dict())
    # Six steps of Adam magnify rounding; a moment that was lost on the way would change their direction.
    assert float((found - expected).norm() / moved.norm()) < 0.05


def test_a_resolved_job_travels_as_text(small_job) -> None:
    import yaml

    assert job_from_mapping(yaml.safe_load(dump_job(small_job()))) == small_job()


def test_a_ledger_shows_each_position_once_over_a_stop_and_a_kill(small_job, small_data, tmp_path) -> None:
    job = small_job(data={"ledger": True}, checkpoint={"every_steps": 2, "keep": 2})

    class Killed(Engine):
        """Dies in the step after step 3's, behind the checkpoint at step 2."""

        left = 4

        def clip(self, parameters: Sequence[nn.Parameter], max_norm: float | None) -> Tensor:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return super().clip(parameters, max_norm)

    with pytest.raises(KeyboardInterrupt):
        run(job, small_data, tmp_path, engine=Killed(CPU))
    run(job, small_data, tmp_path, Listener(stop_after=1))
    assert run(job, small_data, tmp_path).status == "finished"
    found = consumed(str(tmp_path))
    size = job.train.global_batch_size
    assert found.positions == 6 * size
    assert found.attempts == 3
    stream = datasets.train_stream(small_data, job)
    expected = [
        (name, id_)
        for b in stream.steps(0, 1, 0, 6 * size)
        for name, id_ in zip(b.degradations, b.ids, strict=True)
    ]
    assert list(LedgerReader(LocalStore(tmp_path), 6 * size)) == expected
    piece = max((tmp_path / "ledger").rglob("*.jsonl"))
    piece.chmod(0o644)
    piece.unlink()
    with pytest.raises(LedgerError, match="is missing"):
        consumed(str(tmp_path))


def test_a_result_says_by_which_rule_its_checkpoints_were_kept(small_job, small_data, tmp_path) -> None:
    rule = {"keep": 4, "keep_best": 2, "metric": "val/5deg/haze/ssim", "order": "min", "keep_hours": 3}
    run(small_job(checkpoint=rule), small_data, tmp_path)
    result = json.loads((tmp_path / RESULT).read_bytes())
    assert Retention(**result[RETENTION_RULE]) == Retention(4, 2, "val/5deg/haze/ssim", False, 3)


def test_crops_and_batches_that_grow_survive_a_stop_bit_for_bit(small_job, small_data, tmp_path) -> None:
    job = small_job(
        data={
            "crop_pixels": [
                {"from_step": 0, "pixels": 16},
                {"from_step": 2, "pixels": 32},
                {"from_step": 4, "pixels": 32, "batch": 2},
            ]
        }
    )
    run(job, small_data, tmp_path / "whole")
    assert run(job, small_data, tmp_path / "stopped", Listener(stop_after=5)).status == "stopped"
    run(job, small_data, tmp_path / "stopped")
    assert_same_weights(final_weights(tmp_path / "stopped"), final_weights(tmp_path / "whole"))
    result = json.loads((tmp_path / "whole" / RESULT).read_bytes())
    assert result["positions"] == 4 * job.train.global_batch_size + 2 * 2


@pytest.mark.usefixtures("tiny_operators")
def test_a_run_with_a_second_order_pipeline_resumes_bit_exactly_and_refuses_another_one(
    small_job, small_data, tmp_path
) -> None:
    changes = {
        "setting": "own",
        "degradations": PIPELINES,
        "data": {"mixture": {"phone-night": 3, "rain": 1, "noise15": 1}},
        "evaluate": {"degradations": ["phone-night", "rain"]},
        "example": None,
    }
    job = small_job(**changes)
    assert run(job, small_data, tmp_path / "whole") == JobOutcome("finished", 6, 6)
    folder = tmp_path / "stopped"
    assert run(job, small_data, folder, Listener(stop_after=2)) == JobOutcome("stopped", 2, 6)
    assert run(job, small_data, folder) == JobOutcome("finished", 6, 6)
    assert_same_weights(final_weights(folder), final_weights(tmp_path / "whole"))
    other = small_job(**changes | {"degradations": {**PIPELINES, "noise35": [{"tiny_noise": {"sigma": 36}}]}})
    assert run_id(other, small_data.digests) != run_id(job, small_data.digests)
