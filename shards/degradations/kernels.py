"""The blurs of a pipeline: how far each kernel may reach, and how small the image may be there."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shards.degradations.operators.blur import kernel_radius
from shards.degradations.pipeline import Maybe, OneOf, OperatorStep, Repeat, Shuffle, Step, Steps, Use

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A blur of a pipeline with the largest values of its parameters."""

    key: Key
    """Place below the pipeline in a job; that of a `use` for all that it applies."""
    operator: str
    radius: int
    """Pixels on each side of the kernel's centre."""
    scale: float
    """Smallest side that the image may have there, as a share of its first one."""
    resized: bool
    """Whether a resize may come before; without one the image surely has its first size."""


def kernels(steps: Steps) -> list[Kernel]:
    """Return the kernels of a pipeline's steps in their order; those that repeat are listed once."""
    found: list[Kernel] = []
    _walk_all(steps, (), _Size(), found)
    return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class _Size:
    """Smallest side of the image at a step, as a share of the first, and whether a resize may have come before."""

    scale: float = 1.0
    resized: bool = False

    def or_(self, other: _Size) -> _Size:
        return _Size(min(self.scale, other.scale), self.resized or other.resized)


def _walk_all(steps: Steps, key: Key, size: _Size, found: list[Kernel]) -> _Size:
    """Add the kernels of some steps to `found` and return the size after them."""
    for number, step in enumerate(steps.items):
        size = _walk(step, _key(key, number, step), size, found)
    return size


def _key(above: Key, number: int, step: Step) -> Key:
    return (*above, str(number), "use" if isinstance(step, Use) else step.name)


def _walk(step: Step, key: Key, size: _Size, found: list[Kernel]) -> _Size:
    match step:
        case OperatorStep():
            return _walk_operator(step, key, size, found)
        case Shuffle(steps):
            # Each step may be the last: all resizes of the others may come before it.
            for number, each in enumerate(steps.items):
                others = Steps((*steps.items[:number], *steps.items[number + 1 :]))
                before = size.or_(_walk_all(others, key, size, []))
                _walk(each, _key(key, number, each), before, found)
            return size.or_(_walk_all(steps, key, size, []))
        case Repeat(times, steps):
            after = size
            for _ in range(int(times.most)):
                after = after.or_(_walk_all(steps, (*key, "steps"), after, found))
            return after
        case OneOf(weights, branches):
            ends = [
                _walk_all(branch, (*key, str(number), "steps"), size, found)
                for number, (weight, branch) in enumerate(zip(weights, branches, strict=True))
                if weight
            ]
            after = ends[0]
            for end in ends[1:]:
                after = after.or_(end)
            return after
        case Maybe(probability, steps):
            return size.or_(_walk_all(steps, (*key, "steps"), size, found)) if probability else size
        case Use(pipeline):
            used: list[Kernel] = []
            size = _walk_all(pipeline.steps, key, size, used)
            found += [replace(one, key=key) for one in used]
    return size


def _walk_operator(step: OperatorStep, key: Key, size: _Size, found: list[Kernel]) -> _Size:
    if step.name == "resize":
        return _Size(size.scale * float(step.parameters["scale"].least), True)
    if step.name == "resize_back":
        return _Size(float(step.parameters["scale"].least), True)
    most = {name: each.most for name, each in step.parameters.items()}
    radius = kernel_radius(step.name, most)
    if "size" in most:  # 0 leaves the size to the width
        radius = max(radius, kernel_radius(step.name, {**most, "size": step.parameters["size"].least}))
    if radius:
        found.append(Kernel(key, step.name, radius, size.scale, size.resized))
    return size
