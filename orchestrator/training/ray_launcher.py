"""Launch a run on Ray Train: as many workers as the job allows and the cluster has room for, whatever happens to it.

Ray keeps one group of workers alive: when a worker or a node dies it starts the group anew, with fewer workers (not
below `workers.min`) where there is no replacement. When a node is about to go, or when there has been room for more
workers for a while, the group writes a checkpoint, leaves, and another one goes on: no step is lost. What the run
computes is `orchestrator.training.loop`, and is the same for any number of workers.

Checkpoints are the run's own business (`orchestrator.training.checkpoint`), not Ray's: what is in the store is
committed, whatever Ray knew of it when a worker died.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from dataclasses import asdict
from typing import Any

import ray
import ray.exceptions
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.capacity import Resources, free_resources, wait_for_capacity
from orchestrator.cluster.connection import connected
from orchestrator.cluster.node_requests import NodeRequest
from orchestrator.cluster.placement_groups import free_leaked_groups
from orchestrator.cluster.ray_internals_autoscaler import is_autoscaling
from orchestrator.cluster.ray_internals_nodes import draining_nodes
from orchestrator.config.schema import Job
from orchestrator.errors import PlanError, TrainingError
from orchestrator.signals import on_stop
from orchestrator.training.assignment import Assignment
from orchestrator.training.driver import Driver, Outcome, Wish
from orchestrator.training.elasticity import Resizing
from orchestrator.training.ray_driver_channel import Mailbox, Notice
from orchestrator.training.ray_worker import work
from shards.store import open_store

__all__ = ["Assignment", "OutOfRestartsError", "connected", "launch", "launch_until"]

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_NEVER_SECONDS = 1e9


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    """torch.distributed, and SIGTERM taken as a notice, which only a worker's main thread can arrange."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        super().on_start(worker_group, backend_config)
        worker_group.execute(Notice.listen)


class _Torch(TorchConfig):  # type: ignore[misc]
    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


def launch(job: Job, assignment: Assignment, driver: Driver, *, insist: bool = True) -> Outcome:
    """Run the job's training on the connected Ray cluster and return how it ended.

    SIGTERM and Ctrl-C stop it with a checkpoint. Raises PlanError when the cluster can never hold the job,
    TrainingError when it failed for good. `insist`: a run whose workers died too often, but which had come further, is
    tried again.
    """
    asked = threading.Event()
    with on_stop(asked.set):
        return launch_until(job, assignment, driver, asked, insist=insist)


def launch_until(
    job: Job, assignment: Assignment, driver: Driver, asked: threading.Event, *, insist: bool = True
) -> Outcome:
    """Do what `launch` does, in any thread; the run stops with a checkpoint when `asked` is set."""
    deadline = (
        time.monotonic() + 3600 * job.workers.max_runtime_hours if job.workers.max_runtime_hours else None
    )
    began_before = False
    while True:
        free_leaked_groups()
        workers = wait_for_capacity(job.workers, driver.say, asked.is_set, known_to_fit=began_before)
        if workers == 0:
            return Outcome("stopped", 0, 0)
        written = _newest_checkpoint(assignment)
        try:
            outcome = _Group(job, assignment, driver, asked, deadline).run(workers)
        except OutOfRestartsError as error:
            if not insist or _newest_checkpoint(assignment) == written or asked.is_set():
                raise
            driver.say(f"{error}\nIt had come further since it began, so it is tried again.")
        else:
            if outcome.status != "regrouping":
                free_leaked_groups()
                return outcome
            driver.say(f"another group of workers goes on from step {outcome.step}")
        began_before = True


class OutOfRestartsError(TrainingError):
    """Workers died more often than they may; all other failures are final."""


class _Group:
    """One call of Ray Train's: a group of workers, and those that Ray starts in its place when one of them dies."""

    def __init__(
        self,
        job: Job,
        assignment: Assignment,
        driver: Driver,
        asked: threading.Event,
        deadline: float | None,
    ) -> None:
        self._job, self._assignment, self._driver = job, assignment, driver
        self._asked, self._deadline = asked, deadline
        # Where this process is: on another node it would be lost with that one.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()
        self._resizing = Resizing(job.workers)
        self._asking = NodeRequest(job.workers) if is_autoscaling() else None
        self._wish = Wish.GO_ON
        self._seen = 0
        self._nobody_since: float | None = time.monotonic()
        self._ended: list[ray.train.Result | BaseException] = []

    def run(self, workers: int) -> Outcome:
        """Train with at most this many workers until the run or the group ends; raises TrainingError."""
        least = min(self._job.workers.min, workers)
        many = f"{workers} worker{'' if workers == 1 else 's'}"
        self._driver.say(f"starting {many} (10 to 30 seconds)")
        thread = threading.Thread(
            target=self._fit,
            args=[self._trainer(workers if least == workers else (least, workers))],
            name="ray-train",
            daemon=True,
        )
        thread.start()
        try:
            while thread.is_alive():
                thread.join(_POLL_SECONDS)
                self._deliver()
                self._look()
        finally:
            if self._asking:
                self._asking.release()
        self._deliver()
        (result,) = self._ended
        failure = ray.get(self._mailbox.failure.remote())
        if failure:
            raise TrainingError(failure)
        if isinstance(result, ray.train.Result):
            return Outcome(**result.return_value)
        raise OutOfRestartsError(
            f"training failed after {self._job.workers.max_failures} restarts: {_root_cause(result)}\n"
            "Submit the job again to go on from its newest checkpoint."
        ) from result

    def _trainer(self, workers: int | tuple[int, int]) -> TorchTrainer:
        need = self._job.workers
        return TorchTrainer(
            work,
            train_loop_config={"assignment": asdict(self._assignment), "mailbox": self._mailbox},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers,
                use_gpu=need.gpus > 0,
                resources_per_worker={"CPU": need.cpus} | ({"GPU": need.gpus} if need.gpus else {}),
                # Left to itself Ray would kill a healthy group in order to enlarge it, and steps with it.
                elastic_resize_monitor_interval_s=_NEVER_SECONDS,
            ),
            torch_config=_Torch(timeout_s=math.ceil(need.collective_timeout_seconds)),
            run_config=ray.train.RunConfig(
                # Ray resumes whatever it finds under a known name; ours is new each time, as resuming is our part.
                name=f"{self._job.name}-{time.time_ns()}",
                storage_path=_ray_storage(self._assignment),
                failure_config=ray.train.FailureConfig(max_failures=need.max_failures),
            ),
        )

    def _fit(self, trainer: TorchTrainer) -> None:
        try:
            self._ended.append(trainer.fit())
        except BaseException as error:  # carried to the main thread, which raises it
            self._ended.append(error)

    def _deliver(self) -> None:
        for kind, content in ray.get(self._mailbox.collect.remote()):
            getattr(self._driver, kind)(*content)

    def _look(self) -> None:
        """Tell the workers what is wanted of them, and end the wait for a group that does not come."""
        if self._deadline and time.monotonic() > self._deadline and not self._asked.is_set():
            self._driver.say(f"workers.max_runtime_hours ({self._job.workers.max_runtime_hours:g}) is over")
            self._asked.set()
        if self._asked.is_set():
            self._want(Wish.STOP, "stopping: the run writes a checkpoint at its next step and ends")
            return
        count, size, members = ray.get(self._mailbox.group.remote())
        if count != self._seen:
            self._seen, self._nobody_since = count, None
            self._driver.say("1 worker trains" if size == 1 else f"{size} workers train")
        if self._nobody_since is None:
            self._notice_lost_nodes(members)
        elif time.monotonic() - self._nobody_since > self._job.workers.startup_timeout_seconds:
            self._mailbox.want.remote(Wish.STOP)  # of a group that begins after all
            raise PlanError(
                f"no group of workers has begun within workers.startup_timeout_seconds "
                f"({self._job.workers.startup_timeout_seconds:g} s). See what the cluster waits for: ray status. "
                "Submit the job again to go on from its newest checkpoint."
            )
        if self._nobody_since is None:
            going = draining_nodes()
            reason = self._resizing.reason(members, going, self._room(members, going), time.time())
            if reason:
                self._want(
                    Wish.REGROUP, f"{reason}: the run writes a checkpoint at its next step and regroups"
                )

    def _room(self, members: dict[int, str], going: dict[str, float]) -> list[Resources]:
        """Return what is free on nodes that stay; an autoscaler is asked for the workers that are missing."""
        free = free_resources(going)
        if self._asking:
            self._asking.request(self._job.workers.max - len(members))
            free += [self._asking.bundle] * self._asking.ready(going)
        return free

    def _notice_lost_nodes(self, members: dict[int, str]) -> None:
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        lost = {rank: node for rank, node in members.items() if node not in alive}
        if not lost:
            return
        self._nobody_since = time.monotonic()
        if self._asking:
            self._asking.release()  # the next group may need it
        if self._wish is Wish.GO_ON:  # that a node is lost which was about to go is no news
            ranks = ", ".join(str(rank) for rank in sorted(lost))
            need = self._job.workers
            self._driver.say(
                f"lost node {', '.join(sorted({node[:8] for node in lost.values()}))} with worker {ranks}: "
                f"waiting for room for {need.min} to {len(members)} x ({need.cpus:g} CPU, {need.gpus:g} GPU)"
            )

    def _want(self, wish: Wish, why: str) -> None:
        if wish > self._wish:
            self._wish = wish
            self._driver.say(why)
            self._mailbox.want.remote(wish)


def _newest_checkpoint(assignment: Assignment) -> str:
    """Return the name of the newest checkpoint, whole or not, or "": whether it changes shows that a run comes on."""
    return max(open_store(assignment.run_uri).list("checkpoints/"), default="")


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
