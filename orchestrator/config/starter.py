"""Starter job files for the user's own photographs, and whether `ray job submit FILE` can run a job file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.config.schema import Pack
from orchestrator.config.yaml_text import YamlError, read_yaml
from shards.sample import SIGMA

FIRST_LINE = "#!/usr/bin/env -S python -m orchestrator run"
"""First line of every job file: `ray job submit FILE` executes it."""

_REPEATS = 20
"""Repeats of each sample in an epoch, so that an epoch of a few photographs fills a batch.

A photograph is one sample of noise, and `pack.variants` samples of another synthetic degradation.
"""
_CPU_MODEL = "{dim: 24, blocks: [1, 1, 1, 1], refinement_blocks: 0, heads: [1, 1, 2, 2], drop_path: 0.0}"


def submit_problem(path: Path) -> str:
    """Return why `ray job submit FILE` cannot run a job file, and the remedy; "" if it can."""
    with path.open(encoding="utf-8") as file:
        if file.readline().rstrip("\n") != FIRST_LINE:
            return f"{path}: `ray job submit` cannot run this file: its first line must be {FIRST_LINE}"
    if not os.access(path, os.X_OK):
        return f"{path}: `ray job submit` cannot run this file: make it executable with chmod +x {path}"
    return ""


def starter_job(
    name: str,
    pack: Mapping[str, object],
    degradations: Sequence[str],
    presets: Mapping[str, str],
    *,
    path: str,
    steps: int,
    gpu: bool,
) -> str:
    """Return a commented job file that packs `pack` (a section `data.pack`), trains and registers a model.

    `presets`: name among `degradations` -> preset that degrades photographs while they are read. Without `gpu` it
    trains a network small enough for a CPU.
    """
    variants = Pack.model_fields["variants"].default if pack["source"] == "synthetic" else 1
    repeats = {each: _REPEATS * (variants if each in SIGMA else 1) for each in degradations}
    mixture = ", ".join(f"{_scalar(each)}: {count}" for each, count in repeats.items())
    evaluated = ", ".join(map(_scalar, degradations))
    label = _scalar(name)
    pipelines = "".join(f"\n  {each}: [{{use: {preset}}}]" for each, preset in presets.items())
    section = f"degradations:             # drawn again for each crop{pipelines}\n" if presets else ""
    packing = "\n".join(f"    {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in pack.items())
    model = "{variant: tiny}" if gpu else _CPU_MODEL
    crop, batch, precision = (128, 32, "bf16") if gpu else (64, 8, "fp32")
    every = max(1, steps // 4)
    ema_decay = min(0.999 if gpu and steps > 5000 else 0.99, round(1 - 8 / steps, 3))
    return f"""{FIRST_LINE}
# Trains a restoration model on your own photographs.
#   mirage plan {path}       check this file, and see steps, memory and time
#   mirage train {path} --in-process     pack, train, evaluate and register the model; rerun it to resume
#   mirage restore PHOTO -m models:/{name}@candidate
name: {label}
recipe: fast                # AdamW, cosine schedule, moving average of the weights
setting: own                # your own data: mixture, evaluate.degradations and steps are set below
storage: .mirage/folder     # packed photographs and runs: a folder or s3://bucket
model: {model}
{section}data:
  manifests: {label}         # packed once, below `storage`; after a change of `pack` use another name
  pack:
{packing}
  mixture: {{{mixture}}}    # degradation: repeats of each of its samples in an epoch
  crop_pixels: {crop}
evaluate: {{degradations: [{evaluated}]}}
train:
  steps: {steps}            # more steps restore better
  global_batch_size: {batch}
  learning_rate: {"1.0e-3" if gpu else "2.0e-3"}
  warmup_steps: {max(1, steps // 20)}
  precision: {precision}
  ema_decay: {ema_decay:g}
checkpoint: {{every_steps: {every}}}
validation: {{every_steps: {every}, photographs: 2, crop_pixels: 192}}
workers: {{min: 1, max: 1, {"gpus: 1, cpus: 4" if gpu else "cpus: 2"}}}
track: {{experiment: {label}, register_as: {label}}}
"""


def _scalar(text: str) -> str:
    """Return a text as YAML: plain where YAML reads it as that text, else in quotes."""
    with suppress(YamlError):
        if re.fullmatch(r"[\w.-]+", text) and read_yaml(text).value == text:
            return text
    return json.dumps(text, ensure_ascii=False)
