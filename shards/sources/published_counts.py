"""Compare a part of a published dataset, as found on disk, with its published numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product

from shards.problems import DataProblem
from shards.sources.layout import DatasetPart
from shards.sources.pattern import Pattern
from shards.sources.recognise import LayoutMatch


def count_problems(part: DatasetPart, found: LayoutMatch, expected: int | None) -> Iterator[DataProblem]:
    """Yield the problem that the part does not have `expected` pairs (None: any number), if so."""
    if expected is not None and len(found.pairs) != expected:
        what = f"{_where(part, found)} has {len(found.pairs):,} pairs; the set has {expected:,}."
        remedy = part.wrong_counts.get(len(found.pairs), "Complete the download, or name another --root.")
        yield DataProblem(what, remedy, _missing_names(part, found))


def published_problems(part: DatasetPart, found: LayoutMatch) -> Iterator[DataProblem]:
    """Yield where the clean images, the folders and the labels of a complete part differ from the published counts."""
    where = _where(part, found)
    cleans = len({pair.clean for pair in found.pairs})
    if part.cleans is not None and cleans != part.cleans:
        yield DataProblem(f"{where} has {cleans:,} clean images in use; the set has {part.cleans:,}.")
    if part.histogram is not None:
        name, counts = part.histogram
        seen = Counter(pair.fields[name] for pair in found.pairs if name in pair.fields)
        wrong = [f"{name}{key} has {seen[key]:,} of {n:,}" for key, n in counts.items() if seen[key] != n]
        if seen and wrong:
            yield DataProblem(f"{where}: the folders are not complete.", examples=tuple(wrong))
    labelled = Counter(part.label_of(pair.name, pair.fields) for pair in found.pairs)
    for label in part.labels:
        if label.pairs is not None and labelled[label] != label.pairs:
            yield DataProblem(
                f"{where} has {labelled[label]:,} pairs of {label.source}; the set has {label.pairs:,}."
            )


def _where(part: DatasetPart, found: LayoutMatch) -> str:
    return f"{part.name} ({part.split}, in {found.base or '.'}, laid out as: {found.layout.name})"


def _missing_names(part: DatasetPart, found: LayoutMatch) -> tuple[str, ...]:
    """Return the names of missing degraded files, where the clean ones determine them."""
    if part.grid is None or len(found.pairs) > (part.pairs or 0):
        return ()
    pattern = Pattern(part.grid.name)
    present = {pattern.fill(pair.fields) for pair in found.pairs}
    names = (
        pattern.fill({"key": key, **dict(zip(part.grid.values, values, strict=True))})
        for key in sorted({pair.fields["key"] for pair in found.pairs})
        for values in product(*part.grid.values.values())
    )
    return tuple(name for name in names if name not in present)
