"""Placement groups whose job has ended: Ray sometimes leaves them, and they block the cluster."""

from __future__ import annotations

import logging

from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.state import list_jobs, list_placement_groups
from ray.util.state.exception import RayStateApiException

log = logging.getLogger(__name__)

_LIST_LIMIT = 10_000
"""Ray's default is 100."""
_ATTEMPTS = 2


def leaked_groups() -> list[str]:
    """Return the ids of placement groups whose job has ended."""
    # List groups first: a job that starts between the two calls must not look ended.
    groups = list_placement_groups(filters=[("state", "!=", "REMOVED")], detail=True, limit=_LIST_LIMIT)
    running = {job.job_id for job in list_jobs(limit=_LIST_LIMIT) if job.status == "RUNNING"}
    return [g.placement_group_id for g in groups if not g.is_detached and g.creator_job_id not in running]


def free_leaked_groups() -> int:
    """Remove the placement groups of jobs that have ended; return how many there were.

    While Ray's dashboard, which lists them, does not answer, they stay: that is no reason not to train.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            leaked = leaked_groups()
            break
        except RayStateApiException as error:
            log.warning(
                "Ray's dashboard does not answer (%s), attempt %d of %d: placement groups that ended jobs may have "
                "left are not removed",
                str(error).strip().partition("\n")[0][:120],
                attempt,
                _ATTEMPTS,
            )
    else:
        return 0
    for group in leaked:
        log.warning("removing placement group %s: the job that created it has ended", group)
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
    return len(leaked)
