"""The old name of `submit_hook`, still in RAY_JOB_SUBMIT_HOOK of users' shells."""

from orchestrator.cluster.submit_hook import submit

__all__ = ["submit"]
