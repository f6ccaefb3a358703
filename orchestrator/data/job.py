"""Packing as a job: make a dataset where a job says how, unless it is there already."""

from __future__ import annotations

import time

from orchestrator.config.job_schemas import PackJob
from orchestrator.config.schema import Job, Pack
from orchestrator.console import Echo
from orchestrator.data import datasets
from shards.errors import ShardsError
from shards.manifest import Manifest, load_manifest
from shards.processes import TaskRunner
from shards.progress import ProgressCallback
from shards.store import open_store

_TELL_SECONDS = 2.0
_PHASES = ("looking at", "packing", "hashing")


def run_pack(job: PackJob, say: Echo, *, on_cluster: bool = False) -> None:
    """Pack the job's data and say what the dataset holds.

    On a cluster every shard is a task of its own, wherever there is room; else processes of this machine share them.
    """
    if on_cluster:
        from orchestrator.cluster.connection import connected
        from orchestrator.data.ray_tasks import RayTasks

        with connected():
            say("every shard is a task of the cluster")
            packed = pack_what_is_missing(job, say, RayTasks())
    else:
        packed = pack_what_is_missing(job, say)
    (uri,) = datasets.manifest_uris(job)
    manifest = load_manifest(open_store(uri))
    if not packed:
        say(f"{uri} is packed already; nothing is changed.")
    say(_held(manifest))


def plan_pack(job: PackJob) -> str:
    """Return what packing will make and what is there already. Raises PlanError where the source is not there."""
    (uri,) = datasets.manifest_uris(job)
    spec = job.data.pack
    lines = [
        f"job {job.name}   kind pack",
        "",
        f"source     {spec.source}{f' in {spec.root}' if spec.root else ''}{_draws(spec)}",
        f"into       {uri}, encoding {spec.encoding}",
    ]
    for degradation, count in datasets.source_counts(spec).items():
        lines.append(f"             train {degradation:<9} {count:>7,}")
    try:
        there = load_manifest(open_store(uri))
    except ShardsError:
        return "\n".join([*lines, "there now  nothing"])
    return "\n".join([*lines, f"there now  manifest {there.digest[:16]} of {len(there.rows):,} samples"])


def pack_what_is_missing(job: Job | PackJob, say: Echo, runner: TaskRunner | None = None) -> bool:
    """Pack the job's data unless it is there or the job does not say how; return whether anything was packed."""
    packed = datasets.ensure_packed(
        job, datasets.PackCallbacks(*(_progress(say, what) for what in _PHASES)), runner
    )
    if packed:
        say("packed " + ", ".join(datasets.manifest_uris(job)))
    return packed


def _draws(spec: Pack) -> str:
    if spec.source not in ("photographs", "synthetic"):
        return ""
    return f", {spec.variants} draws of each degradation per training photograph, seed {spec.seed}"


def _progress(say: Echo, what: str) -> ProgressCallback:
    """Return a progress callback that says where packing is, now and then."""
    last = [time.monotonic()]

    def progress(done: int, total: int, name: str) -> None:
        now = time.monotonic()
        if now - last[0] > _TELL_SECONDS or done == total:
            last[0] = now
            say(f"{what} {done}/{total}  {name}")

    return progress


def _held(manifest: Manifest) -> str:
    lines = [
        f"{len(manifest.rows):,} samples in {len(manifest.shards)} shards, manifest {manifest.digest[:16]}"
    ]
    for split, counts in manifest.counts().items():
        lines += [f"  {split:<5} {degradation:<9} {count:>7,}" for degradation, count in counts.items()]
    return "\n".join(lines)
