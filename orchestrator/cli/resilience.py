"""Commands that inject faults into a training run and check that nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.app import (
    PROOFS,
    JobFile,
    Set,
    argument,
    command,
    complete_run_folder,
    emit,
    load_job_of,
    option,
    seed_option,
    use_local_cluster,
)

if TYPE_CHECKING:
    from orchestrator.resilience.fault_schedule import FaultKind

NOT_PROVEN = 1
"""Exit status when the run with faults differs from the one without."""


@command(
    PROOFS,
    "mirage prove-resume jobs/demo.yaml --kills 3",
    "mirage prove-resume jobs/demo.yaml --workers 1 --workers-after 2 --in-process",
)
def prove_resume(
    job_file: JobFile,
    overrides: Set = None,
    kills: Annotated[int, option("Number of workers to kill.", min=1)] = 3,
    seed: Annotated[int, seed_option("Random seed for kill steps and victims.")] = 0,
    steps: Annotated[int, option("Number of training steps.", min=2)] = 20,
    workers: Annotated[
        int | None, option("Number of workers.", default="the job's workers.min", min=1)
    ] = None,
    on: Annotated[
        list[int] | None,
        option(
            "Number of workers after a kill. Repeatable: one value for each restart, and from the first again.",
            "--workers-after",
            default="the same",
            min=1,
        ),
    ] = None,
    keep: Annotated[
        bool, option("Keep both runs in the storage also when the proof succeeds.", "--keep")
    ] = False,
    in_process: Annotated[
        bool, option("Use plain processes on this machine, without Ray.", "--in-process")
    ] = False,
) -> None:
    """Kill a training run at random steps, resume it, and compare it with an uninterrupted run.

    It runs on the Ray cluster of this job or of `mirage up`; without one, in plain processes. Exit status 1 when the
    results differ.
    """
    use_local_cluster()
    import os

    from orchestrator.config.schema import Job
    from orchestrator.resilience import resume_proof

    job = load_job_of(Job, job_file, overrides)
    config = resume_proof.ProofConfig(kills, seed, steps, workers or job.workers.min, tuple(on or ()))
    if in_process or "RAY_ADDRESS" not in os.environ:
        proof = resume_proof.prove_resume(job, config, emit, keep=keep)
    else:
        from orchestrator.cluster.connection import connected
        from orchestrator.resilience.ray_runs import run_on_ray

        with connected():
            proof = resume_proof.prove_resume(job, config, emit, keep=keep, runner=run_on_ray)
    emit("\n" + proof.render())
    if not proof.holds:
        raise typer.Exit(NOT_PROVEN)


@command(
    PROOFS,
    "mirage chaos jobs/demo.yaml --faults 7",
    "mirage chaos jobs/demo.yaml --only worker --only node --faults 9 --steps 200",
)
def chaos(
    job_file: JobFile,
    overrides: Set = None,
    faults: Annotated[int, option("Number of faults to inject.", min=1)] = 7,
    seed: Annotated[
        int,
        seed_option("Random seed for the faults' order, steps and targets."),
    ] = 0,
    steps: Annotated[int, option("Number of training steps.", min=10)] = 200,
    workers: Annotated[int, option("Number of workers, each on its own node.", min=1)] = 2,
    only: Annotated[
        list[str] | None,
        option(
            "Kind of fault. Repeatable. `node` kills a node at once; `raylet` stops one as `ray stop` does.",
            default="all",
            metavar="worker|driver|job|node|raylet|store|tracking",
        ),
    ] = None,
    recovery_seconds: Annotated[
        float, option("Maximum seconds until training continues after a fault.", min=1)
    ] = 300,
    fault_seconds: Annotated[float, option("Seconds for which the store or tracking fails.", min=0.1)] = 20,
) -> None:
    """Train while workers, driver, nodes, store and tracking fail, and check that nothing is lost.

    It starts a Ray cluster of several nodes, an S3 server and an MLflow server of its own on this machine, in a
    temporary folder. Exit status 1 when anything is lost.
    """
    import tempfile

    from orchestrator.config.schema import Job
    from orchestrator.errors import PlanError
    from orchestrator.resilience.ray_chaos import chaos as inject_faults
    from orchestrator.resilience.resume_proof import ProofConfig, check_worker_count

    job = load_job_of(Job, job_file, overrides)
    config, chosen = ProofConfig(faults, seed, steps, workers), _kinds(only or ())
    check_worker_count(job, config)
    if faults > steps:
        raise PlanError(
            f"{faults} faults need as many steps, and --steps is {steps}. Lower --faults or raise --steps."
        )
    with tempfile.TemporaryDirectory(prefix="mirage-chaos-") as folder:
        report = inject_faults(
            job,
            config,
            Path(folder),
            emit,
            kinds=chosen,
            recovery_seconds=recovery_seconds,
            fault_seconds=fault_seconds,
        )
    emit("\n" + report.render())
    if not report.holds:
        raise typer.Exit(NOT_PROVEN)


@command(PROOFS, "mirage ledger s3://mirage/runs/RUN")
def ledger(
    run: Annotated[
        str, argument("Folder of a run: s3://bucket/runs/NAME or a path.", autocompletion=complete_run_folder)
    ],
) -> None:
    """Check that a run whose job sets `data.ledger` used each sample of its order exactly once."""
    use_local_cluster()
    from orchestrator.maintenance.sample_ledger import consumed

    emit(consumed(run).render())


def _kinds(only: Sequence[str]) -> list[FaultKind]:
    """Return the kinds of faults whose first words are in `only`; all kinds if it is empty."""
    from orchestrator.errors import PlanError
    from orchestrator.resilience.fault_schedule import FAULT_KINDS

    known = {kind.partition(" ")[0]: kind for kind in FAULT_KINDS}
    unknown = [name for name in only if name not in known]
    if unknown:
        raise PlanError(f"--only {unknown[0]}: choose from {', '.join(known)}.")
    return [known[name] for name in known if name in only] or list(FAULT_KINDS)
