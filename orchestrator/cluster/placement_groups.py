"""Placement groups that outlived the job that made them: Ray sometimes leaves them, and they block the cluster."""

from __future__ import annotations

import logging

from ray._raylet import PlacementGroupID
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.state import list_jobs, list_placement_groups

log = logging.getLogger(__name__)

_ALL = 10_000


def leaked_groups() -> list[str]:
    """Return the ids of placement groups whose job has ended."""
    # Groups first: a job that begins between the two questions must not look dead. Ray cuts lists at 100 by itself.
    groups = list_placement_groups(filters=[("state", "!=", "REMOVED")], detail=True, limit=_ALL)
    running = {job.job_id for job in list_jobs(limit=_ALL) if job.status == "RUNNING"}
    return [g.placement_group_id for g in groups if not g.is_detached and g.creator_job_id not in running]


def free_leaked_groups() -> int:
    """Remove the placement groups of jobs that have ended; return how many there were."""
    leaked = leaked_groups()
    for group in leaked:
        log.warning("freeing placement group %s: the job that made it has ended", group)
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
    return len(leaked)
