"""Identify runs and sweeps by a hash of what they compute."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from orchestrator.config.presets import SETTINGS
from orchestrator.config.renamed import with_hashed_names
from orchestrator.config.schema import NON_IDENTITY_KEYS, Job
from orchestrator.config.sweep_schema import EXTENDABLE, SweepJob
from shards.dataset import Dataset


def run_id(job: Job, manifests: Sequence[str]) -> str:
    """Return the identity of the run that `job` on data with these digests is: its name and a digest.

    Keys that say where and how fast it runs leave it the same run.
    """
    content = job.model_dump(mode="json")
    for key in NON_IDENTITY_KEYS:
        section, _, name = key.partition(".")
        if name:
            content[section].pop(name, None)
        else:
            content.pop(section, None)
    # The order of samples follows that of the mixture's keys, which sorting hides.
    order, published = list(job.data.mixture), list(SETTINGS[job.setting].repeats)
    if order != (published if set(order) == set(published) else sorted(order)):
        content["mixture_order"] = order
    text = json.dumps([with_hashed_names(content), list(manifests)], sort_keys=True)
    return f"{job.name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def sweep_id(job: SweepJob, dataset: Dataset) -> str:
    """Return the identity of the sweep that `job` on this data is: its name and a digest.

    What says where and how fast it runs, and how long it goes on, leaves it the same sweep.
    """
    content = job.model_dump(mode="json")
    for key in NON_IDENTITY_KEYS:
        section, _, name = key.partition(".")
        if name:
            content[section].pop(name, None)
        else:
            content.pop(section, None)
    for key in EXTENDABLE:
        content["sweep"].pop(key)
    text = json.dumps([with_hashed_names(content), list(dataset.digests)], sort_keys=True)
    return f"{job.name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
