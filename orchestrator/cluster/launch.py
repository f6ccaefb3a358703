"""Launch a run on Ray Train: as many workers as the job allows and the cluster has room for.

Ray keeps the worker group alive; the run itself is `orchestrator.train`. The driver (this process) and the workers
talk through one small actor: workers leave lines, scalars and pictures there, and read whether to stop. So progress
comes out unprefixed, tracking happens in the driver alone, and no worker ever waits for either.

Checkpoints are the run's own business (`orchestrator.checkpoint`), not Ray's: what is in the store is committed,
whatever Ray knew of it when a worker died.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import ray
import ray.exceptions
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from orchestrator.cluster.groups import free_leaked_groups
from orchestrator.cluster.room import wait_for_room
from orchestrator.config import Job
from orchestrator.engine import DDPEngine, Engine
from orchestrator.errors import ClusterError, OrchestratorError, TrainingError
from orchestrator.jobfile import job_from_mapping
from orchestrator.stop import on_stop
from orchestrator.train import Driver, Outcome, train
from shards.errors import ShardsError, UnreachableStoreError
from shards.store import open_store

log = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT_SECONDS = 300
"""A worker that waits longer than this for the others is wedged, and the group is restarted."""

_POLL_SECONDS = 0.5
_RAY_TRAIN = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
_ALLOCATOR = {
    # glibc gives large blocks back to the system and fetches them anew in every step: on CPU that is some 50,000
    # page faults per step. With these it keeps them.
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(10**11),
    "MALLOC_TOP_PAD_": str(2**26),
}


@dataclass(frozen=True)
class Assignment:
    """What a worker needs to know besides the job: plain data, so that it pickles."""

    job: dict[str, Any]
    manifests: tuple[str, ...]
    digests: tuple[str, ...]
    """Which data it is: restarted workers read this, whatever was packed meanwhile."""
    run_uri: str
    code_version: str
    home: str


class _Mailbox:
    """Where workers leave messages for the driver and learn what it wants."""

    def __init__(self) -> None:
        self._stop = False
        self._failure = ""
        self._letters: list[tuple[str, tuple[Any, ...]]] = []

    def turn(self, letters: list[tuple[str, tuple[Any, ...]]]) -> bool:
        self._letters += letters
        return self._stop

    def collect(self) -> list[tuple[str, tuple[Any, ...]]]:
        letters, self._letters = self._letters, []
        return letters

    def stop(self) -> None:
        self._stop = True

    def fail(self, message: str) -> None:
        self._failure = self._failure or message

    def failure(self) -> str:
        return self._failure


def launch(job: Job, assignment: Assignment, driver: Driver) -> Outcome:
    """Run the job's training on the connected Ray cluster and return how it ended.

    SIGTERM and Ctrl-C stop it with a checkpoint. Raises PlanError when the cluster can never hold the job,
    TrainingError when it failed for good.
    """
    asked = threading.Event()
    with on_stop(asked.set):
        return launch_until(job, assignment, driver, asked)


def launch_until(job: Job, assignment: Assignment, driver: Driver, asked: threading.Event) -> Outcome:
    """Do what `launch` does, in any thread; the run stops with a checkpoint when `asked` is set."""
    free_leaked_groups()
    workers = wait_for_room(job.workers, driver.say, asked.is_set)
    if workers == 0:
        return Outcome("stopped", 0, 0)
    mailbox = ray.remote(num_cpus=0)(_Mailbox).remote()
    trainer = TorchTrainer(
        _work,
        train_loop_config={"assignment": asdict(assignment), "mailbox": mailbox},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=job.workers.gpus > 0,
            resources_per_worker={"CPU": job.workers.cpus}
            | ({"GPU": job.workers.gpus} if job.workers.gpus else {}),
        ),
        torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_SECONDS),
        run_config=ray.train.RunConfig(
            # Ray resumes whatever it finds under a known name; ours is new each time, since resuming is our part.
            name=f"{job.name}-{time.time_ns()}",
            storage_path=_ray_storage(assignment),
            failure_config=ray.train.FailureConfig(max_failures=job.workers.max_failures),
        ),
    )
    driver.say(f"starting {workers} worker{'' if workers == 1 else 's'} (10 to 30 seconds)")
    result = _follow(trainer, mailbox, job, driver, asked)
    failure = ray.get(mailbox.failure.remote())
    free_leaked_groups()
    if failure:
        raise TrainingError(failure)
    return Outcome(**result.return_value)


@contextmanager
def connected() -> Iterator[None]:
    """Connect to the cluster of this job (or the machine's, or a private one) for the time of the block."""
    os.environ.update({name: value for name, value in _RAY_TRAIN.items() if name not in os.environ})
    passed = ("AWS_", "MLFLOW_", "MIRAGE_", "RAY_TRAIN_")
    environment = {**_ALLOCATOR, **{k: v for k, v in os.environ.items() if k.startswith(passed)}}
    try:
        ray.init(
            log_to_driver=False,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": environment},
            namespace="mirage",
        )
    except ConnectionError as error:
        raise ClusterError(
            f"no Ray cluster answers at RAY_ADDRESS={os.environ.get('RAY_ADDRESS', '(unset)')}. "
            "Start one with `mirage up`, correct the address, or train without Ray: --in-process"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _follow(
    trainer: TorchTrainer, mailbox: Any, job: Job, driver: Driver, asked: threading.Event
) -> ray.train.Result:
    """Run `trainer` in a thread and pass on what workers say, until it ends."""
    ended: list[ray.train.Result | BaseException] = []

    def fit() -> None:
        try:
            ended.append(trainer.fit())
        except BaseException as error:  # carried to the main thread, which raises it
            ended.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    deadline = time.monotonic() + 3600 * job.workers.deadline_hours if job.workers.deadline_hours else None
    thread.start()
    told = False
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        _deliver(ray.get(mailbox.collect.remote()), driver)
        if deadline and time.monotonic() > deadline and not asked.is_set():
            driver.say(f"workers.deadline_hours ({job.workers.deadline_hours:g}) is over")
            asked.set()
        if asked.is_set() and not told:
            driver.say("stopping: the run writes a checkpoint at its next step and ends")
            mailbox.stop.remote()
            told = True
    _deliver(ray.get(mailbox.collect.remote()), driver)
    (result,) = ended
    if isinstance(result, ray.train.Result):
        return result
    reason = ray.get(mailbox.failure.remote()) or _root_cause(result)
    raise TrainingError(
        f"training failed after {job.workers.max_failures} restarts: {reason}\n"
        "Submit the job again to go on from its newest checkpoint."
    ) from result


def _deliver(letters: list[tuple[str, tuple[Any, ...]]], driver: Driver) -> None:
    for kind, content in letters:
        getattr(driver, kind)(*content)


def _root_cause(error: BaseException) -> str:
    """Return the first worker's own words, without Ray's layers around them."""
    failures = getattr(error, "worker_failures", None)
    inner = next(iter(failures.values())) if failures else error
    cause = getattr(inner, "cause", None) or inner
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"


def _ray_storage(assignment: Assignment) -> str:
    """Return where Ray Train keeps its few marker files: it needs a place, though no checkpoint goes through it."""
    return os.path.join(assignment.home, "ray")


# --- in the worker -------------------------------------------------------------------------------------------


class _Distant:
    """The driver, as a worker sees it: messages go out in the background, and the answer is read when it is there."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._letters: list[tuple[str, tuple[Any, ...]]] = []
        self._turn: Any = None
        self._stopping = False

    def say(self, line: str) -> None:
        self._letters.append(("say", (line,)))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._letters.append(("metrics", (step, dict(values))))

    def image(self, name: str, png: bytes, step: int) -> None:
        self._letters.append(("image", (name, png, step)))

    def stopping(self) -> bool:
        if self._turn is not None:
            ready, _ = ray.wait([self._turn], timeout=0)
            if not ready:
                return self._stopping
            self._stopping = bool(ray.get(self._turn))
        letters, self._letters = self._letters, []
        self._turn = self._mailbox.turn.remote(letters)
        return self._stopping

    def flush(self) -> None:
        """Send what is left and wait for it."""
        ray.get(self._mailbox.turn.remote(self._letters))
        self._letters = []


class _ToDriver(logging.Handler):
    """Warnings of a worker reach whoever watches the run."""

    def __init__(self, driver: _Distant) -> None:
        super().__init__(logging.WARNING)
        self._driver = driver

    def emit(self, record: logging.LogRecord) -> None:
        self._driver.say(f"{record.levelname.lower()}: {record.getMessage()}")


def engine_for(job: Job, device: torch.device) -> Engine:
    """Return this worker's engine, in an initialised `torch.distributed` world."""
    if job.engine.name == "ddp":
        return DDPEngine(device, job.train.precision)
    from orchestrator.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(
        device, job.train.precision, job.engine.zero_stage, job.train.micro_batches, job.train.clip_norm
    )


def _work(config: dict[str, Any]) -> dict[str, Any]:
    """Take part in a run as one worker of a Ray Train group."""
    assignment, mailbox = Assignment(**config["assignment"]), config["mailbox"]
    if ray.get(mailbox.failure.remote()):
        # The attempt before failed for a reason that trying again does not cure.
        return asdict(Outcome("failed", 0, 0))
    from orchestrator import data

    job = job_from_mapping(assignment.job)
    assert isinstance(job, Job), "only training is launched here"
    os.environ["MIRAGE_HOME"] = assignment.home
    # The number of threads changes the order of sums, and with it the last bit: it is the job's, not the machine's.
    torch.set_num_threads(max(1, int(job.workers.cpus)))
    driver = _Distant(mailbox)
    handler = _ToDriver(driver)
    rank = ray.train.get_context().get_world_rank()
    for package in ("orchestrator", "shards", "mirage"):
        if rank == 0:
            logging.getLogger(package).addHandler(handler)
    try:
        device = ray.train.torch.get_device()
        engine = engine_for(job, device)
        dataset = data.open_dataset_at(assignment.manifests, assignment.digests, job.data)
        outcome = train(job, dataset, open_store(assignment.run_uri), engine, driver, assignment.code_version)
    except UnreachableStoreError:
        raise  # the store may be back when Ray restarts the group
    except (OrchestratorError, ShardsError) as error:
        ray.get(mailbox.fail.remote(str(error)))
        raise
    finally:
        driver.flush()
        for package in ("orchestrator", "shards", "mirage"):
            logging.getLogger(package).removeHandler(handler)
    return asdict(outcome)
