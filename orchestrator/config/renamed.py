"""Old names of job keys and values. They are still accepted, and run identities are still hashed with them.

To rename a key, change the schema and add one line here. Files, overrides and stored jobs with the old name are read
as before, and a run that began under the old name keeps its identity.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Key = tuple[str, ...]


class Renamed(NamedTuple):
    """A key that a job gives under an old name, or with an old value."""

    old: Key
    new: Key
    message: str


KEYS = {
    "data.window": "shuffle_window",
    "train.rate_rule": "lr_scaling",
    "train.recompute": "activation_checkpointing",
    "workers.wait_seconds": "startup_timeout_seconds",
    "workers.deadline_hours": "max_runtime_hours",
    "workers.collective_seconds": "collective_timeout_seconds",
    "workers.resize_seconds": "scale_up_delay_seconds",
    "track.system_seconds": "system_metrics_seconds",
    "profile.after": "skip_first",
    "promote.max_loss_db": "max_drop_db",
    "sweep.search.against": "second_objective",
    "sweep.space.*.otherwise": "default",
}
"""Old key -> new name in the same section. `*` stands for any key."""

VALUES = {"recipe": {"release": "authors"}}
"""Key -> old value -> new value."""


def with_current_names(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Renamed]]:
    """Return `values` under the current names, and what was renamed.

    A section that has a key under both names keeps both; the schema then reports the old one as unknown.
    """
    current = copy.deepcopy(dict(values))
    renamed = []
    for pattern, new in KEYS.items():
        *parents, old = pattern.split(".")
        for path, section in _sections(current, parents):
            if old in section and new not in section:
                section[new] = section.pop(old)
                message = f"{'.'.join((*path, old))} is now called {'.'.join((*path, new))}"
                renamed.append(Renamed((*path, old), (*path, new), message))
    for pattern, replacements in VALUES.items():
        *parents, name = pattern.split(".")
        for path, section in _sections(current, parents):
            value = section.get(name)
            if isinstance(value, str) and value in replacements:
                section[name] = replacements[value]
                key = (*path, name)
                renamed.append(Renamed(key, key, f"{'.'.join(key)}: {value} is now called {section[name]}"))
    return current, renamed


def with_hashed_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dumped job `content` under the names that identities are hashed with: the oldest ones."""
    hashed = copy.deepcopy(dict(content))
    for pattern, new in KEYS.items():
        *parents, old = pattern.split(".")
        for _, section in _sections(hashed, parents):
            if new in section:
                section[old] = section.pop(new)
    for pattern, replacements in VALUES.items():
        *parents, key = pattern.split(".")
        for _, section in _sections(hashed, parents):
            for old, new in replacements.items():
                if section.get(key) == new:
                    section[key] = old
    return hashed


def current_key(dotted: str) -> str:
    """Return the current name of a key written with dots."""
    if dotted not in KEYS:
        return dotted
    parents, _, _ = dotted.rpartition(".")
    return f"{parents}.{KEYS[dotted]}"


def _sections(
    values: dict[str, Any], parents: list[str], path: Key = ()
) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Yield each mapping of `values` at `parents`, with its path."""
    if not parents:
        yield path, values
        return
    name, *rest = parents
    for key in list(values) if name == "*" else [name]:
        below = values.get(key)
        if isinstance(below, dict):
            yield from _sections(below, rest, (*path, key))
