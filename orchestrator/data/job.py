"""Jobs of kind `pack`: pack a dataset unless it is already packed."""

from __future__ import annotations

import os

from orchestrator.config.job_schemas import PackJob
from orchestrator.config.job_types import JobOutcome
from orchestrator.config.schema import Pack, Training
from orchestrator.console import Echo
from orchestrator.data import datasets
from orchestrator.data.sources import source_of
from orchestrator.paths import shard_cache_folder
from orchestrator.progress import progress
from shards.errors import ShardsError
from shards.manifest import Manifest, load_manifest
from shards.processes import TaskRunner
from shards.store import open_store


def run_pack(job: PackJob, echo: Echo, *, in_process: bool = False) -> JobOutcome:
    """Pack the job's data and print a summary of the dataset.

    Each shard is packed by a Ray task on any node; `in_process` or without RAY_ADDRESS, by processes of this machine.
    """
    if not in_process and "RAY_ADDRESS" in os.environ:
        from orchestrator.cluster.connection import connected
        from orchestrator.data.ray_tasks import RayTasks

        with connected():
            echo("each shard is packed by a Ray task")
            packed = pack_if_missing(job, echo, RayTasks())
    else:
        packed = pack_if_missing(job, echo)
    (uri,) = datasets.manifest_uris(job)
    manifest = load_manifest(open_store(uri), cache=shard_cache_folder())
    if not packed:
        echo(f"{uri} is already packed; nothing was changed.")
    echo(_summary(manifest))
    _echo_notice(job, manifest, echo, packed=packed)
    return JobOutcome("finished", 0, 0)


def plan_pack(job: PackJob) -> str:
    """Return a description of what will be packed and what is already there. Raises PackError."""
    (uri,) = datasets.manifest_uris(job)
    spec = job.data.pack
    lines = [
        f"job {job.name}   kind pack",
        "",
        f"source     {spec.source}{f' in {spec.root}' if spec.root else ''}{_draws(spec)}",
        f"into       {uri}, encoding {spec.encoding}",
    ]
    for degradation, count in source_of(spec).training_counts().items():
        lines.append(f"             train {degradation:<9} {count:>7,}")
    try:
        existing = load_manifest(open_store(uri), cache=shard_cache_folder())
    except ShardsError:
        return "\n".join([*lines, "existing   nothing"])
    lines.append(f"existing   manifest {existing.digest[:16]} of {len(existing.rows):,} samples")
    return "\n".join(lines)


def pack_if_missing(job: Training | PackJob, echo: Echo, runner: TaskRunner | None = None) -> bool:
    """Pack the job's data if the job says how and it is not packed yet; return whether anything was packed."""
    with progress(echo, *datasets.PACK_PHASES) as callbacks:
        packed = datasets.ensure_packed(job, datasets.PackCallbacks(*callbacks), runner)
    if packed:
        (uri,) = datasets.manifest_uris(job)
        echo(f"packed {uri}")
        if not isinstance(job, PackJob):  # which says more
            _echo_notice(job, load_manifest(open_store(uri), cache=shard_cache_folder()), echo, packed=True)
    return packed


def _echo_notice(job: Training | PackJob, manifest: Manifest, echo: Echo, *, packed: bool) -> None:
    if notice := datasets.jpeg_notice(manifest, job.data.pack, tried=packed):
        echo(notice)


def _draws(spec: Pack) -> str:
    if spec.source not in ("photographs", "synthetic"):
        return ""
    return f", {spec.variants} draws of each degradation per training photograph, seed {spec.seed}"


def _summary(manifest: Manifest) -> str:
    lines = [
        f"{len(manifest.rows):,} samples in {len(manifest.shards)} shards, manifest {manifest.digest[:16]}"
    ]
    for split, counts in manifest.counts().items():
        lines += [f"  {split:<5} {degradation:<9} {count:>7,}" for degradation, count in counts.items()]
    return "\n".join(lines)
