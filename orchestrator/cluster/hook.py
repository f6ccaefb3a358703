"""The old name of `submit_hook`, which users' shells may still hold in RAY_JOB_SUBMIT_HOOK."""

from orchestrator.cluster.submit_hook import submit

__all__ = ["submit"]
