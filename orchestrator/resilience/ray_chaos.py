"""Inject faults into a run on a local Ray cluster of several nodes, with S3 and MLflow behind faulty proxies.

    driver (a process) ──► Ray: a head without CPUs and a node for each worker ──► proxy ──► rclone serve s3
           └──────────────────────────────────────────────────────────────────────► proxy ──► mlflow server

All files are in a temporary folder and all processes end with the command; the job's own runs are not touched.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from orchestrator.cluster import private_ray
from orchestrator.cluster.local import s3_server
from orchestrator.cluster.local.ports import free_port
from orchestrator.config.identity import run_id
from orchestrator.config.loader import dump_job
from orchestrator.config.schema import Job
from orchestrator.console import Echo
from orchestrator.data import datasets
from orchestrator.errors import ClusterError, TrackingError
from orchestrator.events import Event, read_log
from orchestrator.paths import home
from orchestrator.resilience import resume_proof
from orchestrator.resilience.fault_schedule import (
    ChaosReport,
    FaultKind,
    FaultOutcome,
    ScheduledFault,
    newest_step,
    repeated_steps,
    schedule_faults,
)
from orchestrator.resilience.faulty_proxy import FaultyProxy, healthy, outage, random_faults
from orchestrator.resilience.resume_proof import ProofConfig
from orchestrator.run_files import RUN_TAG
from orchestrator.tracking import background, runs
from orchestrator.tracking.client import connect
from orchestrator.tracking.page import wait_until_up
from orchestrator.tracking.uri import WITHOUT_JOBS, server_command
from shards.store import open_store

_BUCKET = "s3://chaos"
_STORE_FAULTS = 0.25
"""Share of the requests to the store that fail during a "store faulty" fault."""
_OBJECT_STORE_BYTES = 10**8


def chaos(
    job: Job,
    config: ProofConfig,
    folder: Path,
    echo: Echo,
    *,
    kinds: Sequence[FaultKind],
    recovery_seconds: float,
    fault_seconds: float,
) -> ChaosReport:
    """Inject `config.kills` faults into the first steps of `job`, and compare with a run without faults.

    Store and tracking fail for `fault_seconds`, and longer if no request failed in that time.
    """
    with _chaos_cluster(job, config, folder) as cluster:
        cluster.recovery_seconds, cluster.fault_seconds = recovery_seconds, fault_seconds
        outcomes = [
            cluster.inject(fault, echo)
            for fault in schedule_faults(config.kills, config.seed, config.steps, kinds)
        ]
        cluster.wait_for_step(config.steps)
        cluster.stop()
        os.environ.update(cluster.direct_environment)
        dataset = datasets.open_dataset(cluster.job)
        run = run_id(cluster.job, dataset.digests)
        killed = open_store(f"{_BUCKET}/runs/{run}")
        reference = open_store(f"{_BUCKET}/reference")
        last = resume_proof.newest_step(killed)
        whole = replace(config, steps=last)
        echo(f"reference: {last} steps on {config.workers} workers, without faults")
        resume_proof.run_in_processes(
            cluster.job, dataset, reference, [resume_proof.RunSegment(config.workers)], last, echo
        )
        return ChaosReport(
            outcomes=outcomes,
            store_faults={f.value: n for f, n in cluster.store.counts.items() if f.name != "NONE"},
            tracking_faults=cluster.tracking.injected,
            proof=resume_proof.compare(reference, killed, whole),
            untracked_steps=_untracked(cluster, run, last),
        )


@dataclass
class _ChaosCluster:
    """Local cluster with a driver and servers, into which faults are injected."""

    job: Job
    file: Path
    folder: Path
    ray_cluster: Any
    nodes: list[Any]
    store: FaultyProxy
    tracking: FaultyProxy
    environment: Mapping[str, str]
    direct_environment: Mapping[str, str]
    """Environment variables to reach the store without the proxy."""
    mlflow_uri: str
    """Address of MLflow without the proxy."""
    rng: random.Random
    recovery_seconds: float = 300
    """Maximum seconds until training continues after a fault."""
    fault_seconds: float = 20
    driver: subprocess.Popen[bytes] | None = None
    logs: list[Path] = field(default_factory=list)
    """JSON logs of all drivers so far."""

    @property
    def errors(self) -> Path:
        return self.folder / "driver.txt"

    def start(self) -> None:
        """Start a driver, which resumes the run."""
        self.logs.append(self.folder / f"events-{len(self.logs)}.jsonl")
        with self.logs[-1].open("wb") as log, self.errors.open("ab") as errors:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", "run", str(self.file)],
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=errors,
            )

    def events(self) -> list[Event]:
        """Return the events of all drivers so far."""
        return [event for log in self.logs for event in read_log(log.read_text(errors="replace"))]

    def step(self) -> int:
        """Return the newest step that was reported."""
        return newest_step(self.events())

    def wait_for_step(self, step: int) -> float | None:
        """Wait until a step is reported; return the seconds it took, or None after `recovery_seconds`."""
        return self.wait_until(lambda: self.step() >= step)

    def wait_until(self, condition: Callable[[], bool]) -> float | None:
        """Wait until `condition` holds; return the seconds it took, or None after `recovery_seconds`."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > self.recovery_seconds:
                return None
            if self.driver is not None and self.driver.poll() is not None:
                raise ClusterError(f"the driver ended:\n{_last_lines(self.errors)}")
            time.sleep(0.1)
        return time.monotonic() - began

    def inject(self, fault: ScheduledFault, echo: Echo) -> FaultOutcome:
        """Wait for the step of `fault`, inject it, and wait until training continues."""
        if self.wait_for_step(fault.step) is None:
            return FaultOutcome(fault, self.step(), None)
        events = self.events()
        at, seen = newest_step(events), len(events)
        echo(f"step {at}: {fault.kind}")
        if fault.kind == "store faulty":
            plan = random_faults(_STORE_FAULTS, self.rng.randrange(2**32))
            return FaultOutcome(fault, at, self._fail_requests(self.store, plan))
        if fault.kind == "tracking unavailable":
            return FaultOutcome(fault, at, self._fail_requests(self.tracking, outage))
        began = time.monotonic()
        inject: dict[str, Callable[[], bool]] = {
            "worker killed": self._kill_worker,
            "driver killed": self._kill_driver,
            "job stopped": self._stop_and_resubmit,
            "node lost": lambda: self._replace_node(allow_graceful=False),
            "raylet stopped": lambda: self._replace_node(allow_graceful=True),  # as `ray stop` does
        }
        if not inject[fault.kind]():
            return FaultOutcome(fault, at, None)
        continued = self.wait_until(lambda: repeated_steps(self.events()[seen:], at) is not None)
        seconds = time.monotonic() - began
        repeated = repeated_steps(self.events()[seen:], at) or 0
        # Wait for a new step, since the next fault must not hit repeated steps.
        return FaultOutcome(
            fault,
            at,
            seconds if continued is not None and self.wait_for_step(at + 1) is not None else None,
            repeated,
        )

    def stop(self) -> None:
        """Stop the driver with a checkpoint. Raises ClusterError after 300 seconds."""
        assert self.driver is not None, "the driver has been started"
        self.driver.send_signal(signal.SIGTERM)
        try:
            self.driver.wait(300)
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"the driver did not stop:\n{_last_lines(self.errors)}") from error

    def close(self) -> None:
        """Kill the driver."""
        if self.driver is not None:
            self.driver.kill()
            self.driver.wait()

    def _kill_worker(self) -> bool:
        """Kill a random worker; return False if none was found within `recovery_seconds`."""
        found: list[psutil.Process] = []

        def found_any() -> bool:
            found[:] = training_processes(self.nodes)
            return bool(found)

        if self.wait_until(found_any) is None:
            return False
        try:
            self.rng.choice(sorted(found, key=lambda p: p.pid)).kill()
        except psutil.NoSuchProcess:
            return False
        return True

    def _kill_driver(self) -> bool:
        assert self.driver is not None, "the driver has been started"
        self.driver.kill()
        self.driver.wait()
        self.start()
        return True

    def _stop_and_resubmit(self) -> bool:
        """Do what `ray job stop` and another submission do."""
        self.stop()
        self.start()
        return True

    def _replace_node(self, *, allow_graceful: bool) -> bool:
        lost = self.nodes.pop(self.rng.randrange(len(self.nodes)))
        self.ray_cluster.remove_node(lost, allow_graceful=allow_graceful)
        self.nodes.append(_add_node(self.ray_cluster, self.job.workers.cpus))
        return True

    def _fail_requests(self, proxy: FaultyProxy, plan: Callable[[int], Any]) -> float | None:
        """Make requests fail for `fault_seconds`; return the seconds until training then continued, or None."""
        before = proxy.injected
        proxy.plan = plan
        try:
            time.sleep(self.fault_seconds)
            reached = self.wait_until(lambda: proxy.injected > before)
        finally:
            proxy.plan = healthy
        return self.wait_for_step(self.step() + 1) if reached is not None else None


@contextmanager
def _chaos_cluster(job: Job, config: ProofConfig, folder: Path) -> Iterator[_ChaosCluster]:
    with ExitStack() as stack:
        server = s3_server.new(None)
        (folder / "s3").mkdir()
        process = s3_server.start(server, folder / "s3", folder / "s3.txt", f"chaos-{os.getpid()}")
        stack.callback(lambda: psutil.Process(process.pid).kill())
        store = stack.enter_context(FaultyProxy(server.port))
        ray_cluster = stack.enter_context(_ray_cluster())
        port = free_port()
        wait_for_mlflow = stack.enter_context(_mlflow(folder, port))
        tracking = stack.enter_context(FaultyProxy(port))
        nodes = [_add_node(ray_cluster, job.workers.cpus) for _ in range(config.workers)]
        wait_for_mlflow()
        chaos_job = _chaos_job(job, config, f"http://127.0.0.1:{tracking.port}")
        file = folder / "job.yaml"
        file.write_text(dump_job(chaos_job))
        direct = server.environment()
        environment = {
            **os.environ,
            **direct,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{store.port}",
            "MIRAGE_HOME": os.environ.get("MIRAGE_HOME", str(Path.cwd() / ".mirage")),
            "RAY_ADDRESS": ray_cluster.address,
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
        }
        cluster = _ChaosCluster(
            chaos_job, file, folder, ray_cluster, nodes, store, tracking, environment, direct, f"http://127.0.0.1:{port}",
            random.Random(config.seed),
        )  # fmt: skip
        cluster.start()
        stack.callback(cluster.close)
        yield cluster


def _chaos_job(job: Job, config: ProofConfig, tracking: str) -> Job:
    """Return the job with the cluster's store and MLflow, a ledger, frequent checkpoints and fixed `workers`."""
    every = max(1, min(job.checkpoint.every_steps, config.steps // (2 * config.kills + 2)))
    tracked = {"uri": tracking, "every_steps": 1, "register_as": None, "log": "json"}
    workers = {"min": config.workers, "max": config.workers, "max_failures": 3 + config.kills}
    return job.model_copy(
        update={
            "storage": _BUCKET,
            "data": job.data.model_copy(update={"ledger": True}),
            "checkpoint": job.checkpoint.model_copy(
                update={"every_steps": every, "keep": resume_proof.KEEP_ALL}
            ),
            "track": job.track.model_copy(update=tracked),
            "workers": job.workers.model_copy(update=workers),
            "example": None,
        }
    )


@contextmanager
def _ray_cluster() -> Iterator[Any]:
    private_ray.prepare(always=True)
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # also where Ray has been imported
    from ray.cluster_utils import Cluster

    health = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}
    head = {"num_cpus": 0, "object_store_memory": _OBJECT_STORE_BYTES, "node_ip_address": "127.0.0.1"}
    head["dashboard_port"] = free_port()  # another local cluster may use the default port
    with private_ray.session() as own:
        head["temp_dir"] = own["_temp_dir"]
        ray_cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": health})
        try:
            yield ray_cluster
        finally:
            ray_cluster.shutdown()


def _add_node(ray_cluster: Any, cpus: float) -> Any:
    size = {"num_cpus": cpus, "object_store_memory": _OBJECT_STORE_BYTES, "node_ip_address": "127.0.0.1"}
    return ray_cluster.add_node(**size)


@contextmanager
def _mlflow(folder: Path, port: int) -> Iterator[Callable[[], None]]:
    """Start an MLflow server; yield a function that waits until it responds."""
    command, address = server_command(folder / "mlflow.db", port)

    def wait() -> None:
        try:
            wait_until_up(server, command, address)
        except TrackingError as error:
            raise ClusterError(f"MLflow did not start:\n{_last_lines(folder / 'mlflow.txt')}") from error

    with (folder / "mlflow.txt").open("wb") as output:
        server = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **WITHOUT_JOBS},
        )
    try:
        yield wait
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def training_processes(nodes: Iterable[Any]) -> list[psutil.Process]:
    """Return the training processes of these nodes, without those of other clusters on this machine."""
    raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in nodes]
    ours = {child.pid for raylet in raylets for child in raylet.children(recursive=True)}
    running = psutil.process_iter(["cmdline"])
    return [p for p in running if p.pid in ours and "RayTrainWorker" in " ".join(p.info["cmdline"] or [])]


def _untracked(cluster: _ChaosCluster, run: str, last: int) -> int:
    tracked = runs.find_run(cluster.mlflow_uri, RUN_TAG, run, cluster.job.track.experiment)
    if tracked is None:
        return last
    background.sync(cluster.mlflow_uri, tracked.id, home() / "spool")
    history = connect(cluster.mlflow_uri).get_metric_history(tracked.id, "loss/total")
    return len(set(range(1, last + 1)) - {metric.step for metric in history})


def _last_lines(file: Path) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-12:])
