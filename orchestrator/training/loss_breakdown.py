"""Break the loss down by term and by degradation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from orchestrator.config.schema import Job

_SUM, _COUNT = "l1_sum/", "images/"


def degradation_sums(job: Job, restored: Tensor, clean: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the sum of L1 distances and the number of images for each degradation of the job's mixture.

    Every degradation has an entry, also without images here, so that the values can be summed over steps and workers.
    restored, clean: (b, 3, h, w). labels: (b,), index of each image's degradation in the job's mixture.
    """
    index = {name: i for i, name in enumerate(job.data.mixture)}
    names = sorted(index)
    each = (restored.float() - clean.float()).abs().mean((1, 2, 3))  # (b,)
    of = torch.stack([labels == index[name] for name in names], dim=1).to(each.dtype)  # (b, degradations)
    sums, counts = each @ of, of.sum(0)
    return {
        **{f"{_SUM}{name}": value for name, value in zip(names, sums, strict=True)},
        **{f"{_COUNT}{name}": value for name, value in zip(names, counts, strict=True)},
    }


def with_breakdown(job: Job, values: Mapping[str, float]) -> dict[str, float]:
    """Return `values` with mean L1 `loss_of/<degradation>` and `loss_share/<term>` in place of the sums.

    A degradation without images has no value.
    """
    found = {name: value for name, value in values.items() if not name.startswith((_SUM, _COUNT))}
    for name in job.data.mixture:
        if values[f"{_COUNT}{name}"] > 0:
            found[f"loss_of/{name}"] = values[f"{_SUM}{name}"] / values[f"{_COUNT}{name}"]
    total = values["loss/total"]
    if total:
        found |= {
            f"loss_share/{term}": w * values[f"loss/{term}"] / total for term, w in job.loss.terms().items()
        }
    return found
