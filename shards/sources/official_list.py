"""Official lists of training files: which files belong to a published training set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from shards.problems import DataProblem
from shards.sources.layout import PublishedDataset
from shards.sources.list_file import read_list
from shards.sources.pattern import as_one_form
from shards.sources.recognise import FilePair


@dataclass(frozen=True)
class OfficialList:
    """File names of a training set, and those that were found so far."""

    md5: str
    names: tuple[str, ...]
    """Names without folder and suffix, in the order of the list."""
    seen: set[str] = field(default_factory=set)

    @staticmethod
    def read(path: Path) -> OfficialList:
        """Read a text file with one file name per line. Raises PackError."""
        data, lines = read_list(path, str(path))
        names = tuple(dict.fromkeys(map(_stem, lines)))
        return OfficialList(hashlib.md5(data, usedforsecurity=False).hexdigest(), names)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    def takes(self, pair: FilePair) -> bool:
        """Return whether the list names this pair, and remember that it was found."""
        stem = _stem(pair.degraded or pair.clean)
        if stem in self._known:
            self.seen.add(stem)
        return stem in self._known

    def missing(self) -> list[DataProblem]:
        """Return the problem that some listed files were not found, if so."""
        absent = tuple(name for name in self.names if name not in self.seen)
        if not absent:
            return []
        what = f"{len(absent)} of {len(self.names)} files of the list are not there."
        return [DataProblem(what, "Complete the download.", absent)]

    def record(self, published: PublishedDataset) -> dict[str, object]:
        """Return the list's identity in JSON types, for the provenance."""
        known_as = published.lists.get(self.md5, "not an official list that this program knows")
        return {"md5": self.md5, "names": len(self.names), "known_as": known_as}


def _stem(line: str) -> str:
    """Return a file's name without folders and suffix, and without the `a` that some copies put before BSD's ids."""
    name = as_one_form(line).replace("\\", "/").rpartition("/")[2]
    head, dot, tail = name.rpartition(".")
    stem = head if dot and tail.isalpha() else name
    return stem[1:] if stem[:1] == "a" and stem[1:].isdigit() else stem
