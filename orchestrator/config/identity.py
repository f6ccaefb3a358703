"""Identify runs and sweeps by a hash of what they compute."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from orchestrator.config.pipelines import pipelines_of
from orchestrator.config.presets import SETTINGS
from orchestrator.config.renamed import with_hashed_names
from orchestrator.config.schema import LATER_KEYS, NON_IDENTITY_KEYS, Job, Training
from orchestrator.config.sweep_schema import EXTENDABLE, SweepJob
from shards.dataset import Dataset


def run_id(job: Job, manifests: Sequence[str]) -> str:
    """Return the identity of the run of `job` on data with these manifest digests: its name and a hash."""
    content = _identity_content(job)
    # The order of samples depends on the order of the mixture's keys, which `sort_keys` hides.
    order, published = list(job.data.mixture), list(SETTINGS[job.setting].repeats)
    if order != (published if set(order) == set(published) else sorted(order)):
        content["mixture_order"] = order
    return _named_hash(job, content, manifests)


def sweep_id(job: SweepJob, dataset: Dataset) -> str:
    """Return the identity of the sweep of `job` on this data: its name and a hash."""
    content = _identity_content(job)
    for key in EXTENDABLE:
        content["sweep"].pop(key)
    return _named_hash(job, content, dataset.digests)


def _identity_content(job: Training) -> dict[str, Any]:
    """Return the keys of the job that are part of its identity."""
    content = job.model_dump(mode="json")
    for key in NON_IDENTITY_KEYS:
        section, _, name = key.partition(".")
        if name:
            content[section].pop(name, None)
        else:
            content.pop(section, None)
    for key in LATER_KEYS:
        *sections, name = key.split(".")
        values, above = (getattr(job, sections[0]), content[sections[0]]) if sections else (job, content)
        if getattr(values, name) == type(values).model_fields[name].get_default(call_default_factory=True):
            above.pop(name)
    if content["data"]["pack"] and content["data"]["pack"]["jpeg"] == "crop":
        content["data"]["pack"]["jpeg"] = "keep"  # the default before; both give the same pixels
    if job.degradations:  # equal ones have equal digests, however they are written
        content["degradations"] = {name: each.digest for name, each in pipelines_of(job).items()}
    return content


def _named_hash(job: Training, content: dict[str, Any], manifests: Sequence[str]) -> str:
    text = json.dumps([with_hashed_names(content), list(manifests)], sort_keys=True)
    return f"{job.name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
