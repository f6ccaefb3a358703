"""Launch a run on Ray Train with as many workers as the job allows and the cluster can hold.

Ray keeps one group of workers alive: when a worker or a node dies, it restarts the group, with fewer workers (but at
least `workers.min`) if there is no replacement. When Ray Train gives notice that a node leaves, or when there has been
capacity for more workers for a while, the group writes a checkpoint and exits, and another group resumes: no step is
lost. Ray Train would train on until the node is gone, and repeat what follows the checkpoint. The training itself is
`orchestrator.training.loop`; its result does not depend on the number of workers.

Checkpoints are written by the run (`orchestrator.training.checkpoint`) and reported to Ray Train (`ray_session`): a
checkpoint in the store counts, whatever Ray knew of it when a worker died.
"""

from __future__ import annotations

import math
import os
import threading
import time
from dataclasses import asdict, replace
from itertools import count
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator import events
from orchestrator.cluster.capacity import Resources, free_resources, wait_for_capacity
from orchestrator.cluster.node_requests import NodeRequest
from orchestrator.cluster.placement_groups import free_leaked_groups
from orchestrator.cluster.ray_internals_autoscaler import is_autoscaling
from orchestrator.cluster.ray_internals_nodes import draining_nodes
from orchestrator.config.job_types import JobOutcome
from orchestrator.config.schema import Job
from orchestrator.console import message_echo
from orchestrator.errors import TRAINING_MEMORY_ADVICE, PlanError, TrainingError, is_out_of_memory
from orchestrator.ownership import next_number
from orchestrator.training.assignment import WorkerAssignment
from orchestrator.training.driver import ControlSignal, Driver
from orchestrator.training.elasticity import ElasticityPolicy
from orchestrator.training.ray_driver_relay import DriverRelay, Failure
from orchestrator.training.ray_worker import run_worker
from orchestrator.training.worker_signals import SigtermFlag
from shards.store import open_store

POLL_SECONDS = 0.5
_NEVER_SECONDS = 1e9
_PREEMPTION_GRACE_SECONDS = 30.0
_SAME_FAILURE_SECONDS = 5.0  # less than a group needs to start again
_COLLECTIVE_TIMEOUT = "RAY_TRAIN_COLLECTIVE_TIMEOUT_S"


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    """torch.distributed, plus a SIGTERM handler that only a worker's main thread can install."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        super().on_start(worker_group, backend_config)
        worker_group.execute(SigtermFlag.install)


class _TorchConfig(TorchConfig):  # type: ignore[misc]
    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


class FailureReports(ray.train.UserCallback):  # type: ignore[misc]
    """Tells the driver which workers failed; Ray Train calls it in its controller, at each poll until they are gone."""

    def __init__(self, relay: Any) -> None:
        self._relay = relay
        self._reported: tuple[int, ...] = ()
        self._last_call = 0.0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Send the driver an event, unless Ray Train repeats the failure."""
        ranks = tuple(sorted(worker_exceptions))
        is_new = ranks != self._reported or time.monotonic() - self._last_call > _SAME_FAILURE_SECONDS
        self._reported, self._last_call = ranks, time.monotonic()
        if is_new:
            event = events.WorkersReplaced(ranks, _root_cause(worker_exceptions[ranks[0]]))
            self._relay.exchange.remote([event])


class FailureLimitReachedError(TrainingError):
    """Workers died more often than `workers.max_failures`; every other failure is final."""


def launch(
    job: Job,
    assignment: WorkerAssignment,
    driver: Driver,
    stop: threading.Event,
    *,
    retry_on_progress: bool = True,
) -> JobOutcome:
    """Run the job's training on the connected Ray cluster and return how it ended.

    It stops with a checkpoint when `stop` is set. `retry_on_progress`: start a run again that reached its failure
    limit, if it wrote a checkpoint since its start. Raises PlanError when the cluster can never hold the job,
    TrainingError when the run failed for good.
    """
    deadline = (
        time.monotonic() + 3600 * job.workers.max_runtime_hours if job.workers.max_runtime_hours else None
    )
    started_before = False
    owner = assignment.owner or next_number(open_store(assignment.run_uri))
    for launches in count(1):
        free_leaked_groups()
        workers = wait_for_capacity(
            job.workers, message_echo(driver.emit), stop.is_set, known_to_fit=started_before
        )
        if workers == 0:
            return JobOutcome("stopped", 0, 0)
        newest = assignment.newest_checkpoint()
        try:
            turn = replace(assignment, owner=owner, launch=launches)
            outcome = _WorkerGroup(job, turn, driver, stop, deadline).run(workers)
        except FailureLimitReachedError as error:
            if not retry_on_progress or assignment.newest_checkpoint() == newest or stop.is_set():
                raise
            driver.emit(events.WorkersFailed(str(error)))
        else:
            if outcome.status != "restarting":
                free_leaked_groups()
                return outcome
            driver.emit(events.WorkersRestarting(outcome.step))
        started_before = True
    raise AssertionError("`count` has no end")


class _WorkerGroup:
    """One call of Ray Train: a group of workers, and those that Ray starts in its place when a worker dies."""

    def __init__(
        self,
        job: Job,
        assignment: WorkerAssignment,
        driver: Driver,
        stop: threading.Event,
        deadline: float | None,
    ) -> None:
        self._job, self._assignment, self._driver = job, assignment, driver
        self._stop, self._deadline = stop, deadline
        self._stop_reason = ""
        # On this process's node: the relay must not be lost with another node.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
        # Ray's server keeps an event of every call, and the driver calls twice a second as long as the run takes.
        options["enable_task_events"] = False
        self._relay = ray.remote(scheduling_strategy=here, **options)(DriverRelay).remote()
        self._elasticity = ElasticityPolicy(job.workers)
        self._requests = NodeRequest(job.workers) if is_autoscaling() else None
        self._signal = ControlSignal.CONTINUE
        self._groups = 0
        self._failure: Failure = (0, "")
        self._waiting_since: float | None = time.monotonic()
        """When the wait for a running group began; None while one is running."""
        self._result: list[ray.train.Result | BaseException] = []

    def run(self, workers: int) -> JobOutcome:
        """Train with at most this many workers until the run or the group ends. Raises TrainingError."""
        least = min(self._job.workers.min, workers)
        self._driver.emit(events.WorkersStarting(workers))
        thread = threading.Thread(
            target=self._fit,
            args=[self._trainer(workers if least == workers else (least, workers))],
            name="ray-train",
            daemon=True,
        )
        thread.start()
        try:
            while thread.is_alive():
                thread.join(POLL_SECONDS)
                self._forward_events()
                self._supervise()
        finally:
            if self._requests:
                self._requests.release()
        self._forward_events()
        (result,) = self._result
        if failure := ray.get(self._relay.failure.remote()):
            raise TrainingError(failure)
        if isinstance(result, ray.train.Result):
            return JobOutcome(**result.return_value)
        for event in ray.get(self._relay.hung.remote()):
            self._driver.emit(event)
        raise FailureLimitReachedError(
            f"training failed after {self._job.workers.max_failures} restarts: {_root_cause(result)}\n"
            "Submit the job again to resume from its newest checkpoint."
        ) from result

    def _trainer(self, workers: int | tuple[int, int]) -> TorchTrainer:
        need = self._job.workers
        return TorchTrainer(
            run_worker,
            train_loop_config={"assignment": asdict(self._assignment), "relay": self._relay},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers,
                use_gpu=need.gpus > 0,
                resources_per_worker={"CPU": need.cpus} | ({"GPU": need.gpus} if need.gpus else {}),
                # By default Ray kills a healthy group in order to enlarge it, and loses steps.
                elastic_resize_monitor_interval_s=_NEVER_SECONDS,
            ),
            torch_config=_TorchConfig(timeout_s=math.ceil(need.collective_timeout_seconds)),
            run_config=ray.train.RunConfig(
                # Ray would resume what it finds under a known name; resuming is our part, so each name is new.
                name=f"{self._assignment.run_uri.rsplit('/', 1)[-1]}-{time.time_ns() // 1_000_000}",
                storage_path=os.path.join(self._assignment.home, "ray"),  # of Ray's marker files
                callbacks=[FailureReports(self._relay)],
                failure_config=ray.train.FailureConfig(
                    max_failures=need.max_failures,
                    max_preemption_failures=-1,  # a node that leaves after a notice is no failure
                    # If the node is gone before the checkpoint is written, worker 0 may write it to its end. Without
                    # relax_collectives_on_preemption: the barriers of workers that still train would get out of step.
                    preemption_grace_s=_PREEMPTION_GRACE_SECONDS,
                ),
            ),
        )

    def _fit(self, trainer: TorchTrainer) -> None:
        # Ray Train's own barriers would wait for a hung worker without end.
        os.environ[_COLLECTIVE_TIMEOUT] = str(self._job.workers.collective_timeout_seconds)
        try:
            self._result.append(trainer.fit())
        except BaseException as error:  # the main thread raises it
            self._result.append(error)

    def _forward_events(self) -> None:
        collected = self._relay.collect.remote(self._signal, self._groups, self._failure)
        news, self._failure = ray.get(collected)
        for event in news:
            self._driver.emit(event)

    def _supervise(self) -> None:
        """Choose the control signal of the next exchange, and give up on a group that does not start."""
        if self._is_stopping():
            self._send(ControlSignal.STOP, events.StopRequested(self._stop_reason))
            return
        members = self._running_members()
        if self._waiting_since is not None:
            self._check_start_timeout(self._waiting_since)
            return
        if not members:
            return
        if lost := _on_dead_nodes(members):
            self._wait_for_replacement(lost, len(members))
            return
        more = self._elasticity.restart(len(members), self._capacity(len(members)))
        if more:
            self._send(ControlSignal.RESTART, more)

    def _is_stopping(self) -> bool:
        if self._deadline and time.monotonic() > self._deadline and not self._stop.is_set():
            self._stop_reason = (
                f"workers.max_runtime_hours ({self._job.workers.max_runtime_hours:g}) has passed"
            )
            self._stop.set()
        return self._stop.is_set()

    def _running_members(self) -> dict[int, str]:
        """Return the nodes of the newest group's workers by rank; report a new group.

        Empty while the relay does not know all of them: not all have joined, or it was restarted.
        """
        groups, size, members = ray.get(self._relay.group.remote())
        if groups > self._groups:
            self._groups, self._waiting_since = groups, None
            self._driver.emit(events.WorkersStarted(size))
        return members if len(members) == size else {}

    def _check_start_timeout(self, since: float) -> None:
        timeout = self._job.workers.startup_timeout_seconds
        if time.monotonic() - since > timeout:
            self._relay.collect.remote(ControlSignal.STOP, self._groups)  # in case a group starts after all
            raise PlanError(
                f"no group of workers started within workers.startup_timeout_seconds ({timeout:g} s). "
                "Run `ray status` to see what the cluster is waiting for. "
                "Submit the job again to resume from its newest checkpoint."
            )

    def _wait_for_replacement(self, lost: dict[int, str], workers: int) -> None:
        self._waiting_since = time.monotonic()
        if self._requests:
            self._requests.release()  # the next group may need it
        if self._signal is ControlSignal.CONTINUE:  # otherwise the loss was announced
            need = self._job.workers
            waiting_for = f"{need.min} to {workers} x ({need.cpus:g} CPU, {need.gpus:g} GPU)"
            nodes = tuple(sorted(set(lost.values())))
            self._driver.emit(events.WorkersLost(nodes, tuple(sorted(lost)), waiting_for))

    def _capacity(self, workers: int) -> list[Resources]:
        """Return the free resources of nodes that stay; request the missing workers of an autoscaling cluster."""
        draining = draining_nodes()
        free = free_resources(draining)
        if self._requests:
            self._requests.request(self._job.workers.max - workers)
            free += [self._requests.bundle] * self._requests.ready(draining)
        return free

    def _send(self, signal: ControlSignal, event: events.Event) -> None:
        if signal > self._signal:
            self._signal = signal
            self._driver.emit(event)


def _on_dead_nodes(members: dict[int, str]) -> dict[int, str]:
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return {rank: node for rank, node in members.items() if node not in alive}


def _root_cause(error: BaseException) -> str:
    """Return the first worker's own error, without the layers that Ray puts around it."""
    failures = getattr(error, "worker_failures", None)
    inner = next(iter(failures.values())) if failures else error
    cause = getattr(inner, "cause", None) or inner
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [""]
    if is_out_of_memory(cause):
        what = " ".join(lines[:2])  # Ray's second line says how much was used
        return f"memory ran out: {type(cause).__name__}: {what} {TRAINING_MEMORY_ADVICE}"
    killed = "OOM killer" in lines[-1]  # among other possible reasons
    advice = f" If `dmesg` says that memory ran out there: {TRAINING_MEMORY_ADVICE}" if killed else ""
    return f"{type(cause).__name__}: {lines[-1]}{advice}"
