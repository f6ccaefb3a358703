"""Lineage of a registered model back to its photographs: each link with its digest and state.

    model version ─ weights, its files, its code
        └─ run ─ resolved job ─ result in the store
             └─ datasets: manifest ─ shards
                            └─ raw files

A link is *verified* if its digest was computed again and matches, *present* if its object exists but was not read
(`deep` reads shards and raw files), *unknown* if there is nothing to check it against, and *broken* if its object is
missing or has changed. A model that came from a sweep has one more link.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mirage.weights import WeightsError
from orchestrator.config.identity import run_id
from orchestrator.config.loader import job_from_yaml
from orchestrator.config.schema import Job
from orchestrator.errors import DamagedResultError, JobFileError, ModelError, RegistryError, SweepError
from orchestrator.models.network_file import code_of
from orchestrator.paths import absolute_uri, below
from orchestrator.registry import versions
from orchestrator.registry.versions import ModelVersion
from orchestrator.run_files import JOB, RUN_TAG, SCORES, read_result
from orchestrator.sweeps.event_log import read_events
from orchestrator.sweeps.trial_table import table_of
from orchestrator.sweeps.trial_tracking import SWEEP_TAG, TRIAL_TAG
from orchestrator.tracking import runs
from orchestrator.version import code_version
from shards.errors import PackError, ShardsError
from shards.listing import ListedFile, measure, read_listing
from shards.manifest import Manifest, load_manifest, manifest_key
from shards.photographs import PHOTOGRAPHS, photograph_file
from shards.progress import ProgressCallback, counted, ignore
from shards.store import Store, open_store
from shards.store.checked import download_named, read_named

State = Literal["verified", "present", "unknown", "broken"]

_SIGNS: Mapping[State, str] = {"verified": "ok  ", "present": "here", "unknown": "?   ", "broken": "FAIL"}
SHOWN = 12
"""Maximum number of links of one kind that are printed; broken ones are always printed."""


@dataclass(frozen=True)
class Link:
    """One link of the lineage, with the links below it."""

    what: str
    state: State
    digest: str = ""
    detail: str = ""
    below: tuple[Link, ...] = ()

    def all(self) -> Iterator[Link]:
        """Yield this link and all links below it."""
        yield self
        for link in self.below:
            yield from link.all()

    @property
    def holds(self) -> bool:
        """Whether neither this link nor one below it is broken."""
        return all(link.state != "broken" for link in self.all())

    def render(self, depth: int = 0) -> str:
        """Return the tree as text, one line per link; of many unbroken links only the first ones."""
        digest = f"  {self.digest[:16]}" if self.digest else ""
        detail = f"  ({self.detail})" if self.detail else ""
        lines = [f"{_SIGNS[self.state]}  {'  ' * depth}{self.what}{digest}{detail}"]
        leaves = [link for link in self.below if not link.below]
        hidden = set(leaves[SHOWN:]) if len(leaves) > SHOWN + 1 else set()
        hidden = {link for link in hidden if link.state != "broken"}
        lines += [link.render(depth + 1) for link in self.below if link not in hidden]
        if hidden:
            states = ", ".join(sorted({link.state for link in hidden}))
            lines.append(f"{'':4}  {'  ' * (depth + 1)}and {len(hidden)} more, all {states}")
        return "\n".join(lines)


def trace(
    model: str,
    tracking_uri: str,
    *,
    deep: bool = False,
    roots: Sequence[Path] = (),
    on_progress: ProgressCallback = ignore,
) -> Link:
    """Return the lineage of a registered model; progress is that of each dataset's shards and raw files in turn.

    `roots` are folders with the raw files, by default those of the job. Raises RegistryError if there is no such model;
    other problems are in the links.
    """
    version = versions.find(model, tracking_uri)
    job, told = _job(version, tracking_uri)
    links = [
        _weights(version, tracking_uri),
        *(_file_link(version, name, tracking_uri) for name in ("card.md", SCORES)),
        _code(version, tracking_uri),
        *_network_code(version, tracking_uri),
        _run(version, tracking_uri, told, [] if job is None else [_result(version, job, deep)]),
    ]
    if job is not None and SWEEP_TAG in version.tags:
        links.append(_sweep(version, job))
    if job is not None:
        links += _datasets(version, job, deep, roots, on_progress)
    return Link(version.uri, "verified" if links[0].state == "verified" else "broken", below=tuple(links))


def _weights(version: ModelVersion, tracking_uri: str) -> Link:
    digest = version.tags[versions.DIGEST_TAG]
    try:
        versions.weights_file(version.uri, tracking_uri)
    except RegistryError as error:
        return Link("weights", "broken", digest, str(error))
    return Link("weights", "verified", digest)


def _file_link(version: ModelVersion, name: str, tracking_uri: str) -> Link:
    digest = version.tags.get(versions.FILE_TAG + name, "")
    try:
        versions.read_file(version, name, tracking_uri)
    except RegistryError as error:
        return Link(name, "broken" if digest else "unknown", digest, str(error))
    return Link(name, "verified", digest)


def _code(version: ModelVersion, tracking_uri: str) -> Link:
    """Check the package `mirage` in the version, and name the release that trained it."""
    told = f"trained by {version.tags.get(versions.CODE_VERSION_TAG, 'an unknown release')}, here {code_version()}"
    digest = version.tags.get(versions.CODE_TAG, "")
    if not digest:
        return Link("code", "unknown", detail=f"its digest was not recorded; {told}")
    found = versions.packaged_code_digest(version, tracking_uri)
    if found != digest:
        return Link("code", "broken", digest, f"the package in the version is {found[:16] or 'gone'}; {told}")
    return Link("code", "verified", digest, told)


def _network_code(version: ModelVersion, tracking_uri: str) -> list[Link]:
    """Check the code of a user-defined network, which is in the header of the weights."""
    digest = version.tags.get(versions.NETWORK_TAG, "")
    try:
        code = code_of(versions.weights_file(version.uri, tracking_uri).read_bytes())
    except (RegistryError, ModelError, WeightsError) as error:
        return [Link("network's code", "broken", digest, str(error))] if digest else []
    if code is None and not digest:
        return []
    if code is None or code.digest != digest:
        return [
            Link(
                "network's code",
                "broken",
                digest,
                f"the weights bring {code.digest[:16] if code else 'none'}",
            )
        ]
    return [Link("network's code", "verified", digest, f"{code.class_} in {len(code.files)} files")]


def _job(version: ModelVersion, tracking_uri: str) -> tuple[Job | None, Link]:
    """Return the resolved job, and whether the run's id is the hash of this job and its data."""
    link = _file_link(version, JOB, tracking_uri)
    if link.state != "verified":
        return None, link
    try:
        job = job_from_yaml(versions.read_file(version, JOB, tracking_uri))
    except JobFileError as error:
        return None, Link(JOB, "unknown", link.digest, f"this release does not read it: {error}")
    assert isinstance(job, Job), "only training registers"
    named = version.tags.get(RUN_TAG, "")
    if run_id(job, _digests(version)) == named:
        return job, Link("resolved job", "verified", link.digest, f"with the data it makes {named}")
    same_code = version.tags.get(versions.CODE_VERSION_TAG) == code_version()
    told = f"with the data it makes another run than {named}"
    if same_code:
        return job, Link("resolved job", "broken", link.digest, told)
    return job, Link("resolved job", "verified", link.digest, f"{told}: this release resolves more keys")


def _run(version: ModelVersion, tracking_uri: str, job: Link, below: Sequence[Link]) -> Link:
    run = runs.get_run(tracking_uri, version.run_id)
    name = version.tags.get(RUN_TAG, "")
    if run is None:
        return Link(
            f"run {name}", "broken", detail=f"MLflow has no run {version.run_id}", below=(job, *below)
        )
    state: State = "verified" if run.tags.get(RUN_TAG) == name else "broken"
    detail = f"MLflow {version.run_id}" if state == "verified" else f"MLflow calls it {run.tags.get(RUN_TAG)}"
    return Link(f"run {name}", state, detail=detail, below=(job, *below))


def _result(version: ModelVersion, job: Job, deep: bool) -> Link:
    uri = f"{below(job.storage, 'runs')}/{version.tags.get(RUN_TAG, '')}"
    digest = version.tags[versions.DIGEST_TAG]
    try:
        store = open_store(uri)
        key = read_result(store)["weights"]
        if Path(key).stem != digest:
            return Link("result", "broken", Path(key).stem, f"{uri} ended with other weights")
        if deep:
            read_named(store, key)
        there = deep or store.exists(key)
    except (ShardsError, DamagedResultError) as error:
        return Link("result", "broken", digest, f"{uri}: {error}")
    return Link("result", ("verified" if deep else "present") if there else "broken", digest, uri)


def _sweep(version: ModelVersion, job: Job) -> Link:
    """Check that the event log of the model's sweep has its trial."""
    name, number = version.tags[SWEEP_TAG], version.tags.get(TRIAL_TAG, "")
    uri = f"{below(job.storage, 'sweeps')}/{name}"
    try:
        trials = {str(trial.number): trial for trial in table_of(read_events(open_store(uri))).trials}
    except (ShardsError, SweepError) as error:
        return Link(f"sweep {name}", "broken", detail=f"{uri}: {error}")
    if number not in trials:
        return Link(f"sweep {name}", "broken", detail=f"{uri} knows no trial {number}")
    return Link(
        f"sweep {name}", "present", detail=f"trial {number} of {len(trials)}: {trials[number].ending}; {uri}"
    )


def _digests(version: ModelVersion) -> list[str]:
    return [digest for digest in version.tags.get("data", "").split(", ") if digest]


def _datasets(
    version: ModelVersion, job: Job, deep: bool, roots: Sequence[Path], on_progress: ProgressCallback
) -> Iterator[Link]:
    uris = [below(job.storage, name) for name in job.data.manifests]
    for uri, digest in zip(uris, _digests(version), strict=True):
        try:
            store = open_store(uri)
            manifest = load_manifest(store, digest)
        except ShardsError as error:
            yield Link(f"dataset {uri}", "broken", digest, str(error))
            continue
        shards = tuple(
            _shard(store, shard.key, shard.sha256, deep) for shard in counted(manifest.shards, on_progress)
        )
        raw = tuple(_listings(store, manifest, _raw_folders(job, roots), deep, on_progress))
        yield Link(
            f"dataset {manifest.name}",
            "verified",
            digest,
            f"{len(manifest.rows):,} samples, {uri}/{manifest_key(digest)[:22]}…",
            (Link(f"{len(shards)} shards", _worst(shards), below=shards), *raw),
        )


def _shard(store: Store, key: str, digest: str, deep: bool) -> Link:
    try:
        if not deep:
            there = store.exists(key)
            return Link(key[:22] + "…", "present" if there else "broken", digest, "" if there else "gone")
        with tempfile.TemporaryDirectory(prefix="mirage-trace-") as folder:
            copy = Path(folder, "shard.tar")
            download_named(store, key, copy, digest)
    except ShardsError as error:
        return Link(key[:22] + "…", "broken", digest, str(error))
    return Link(key[:22] + "…", "verified", digest)


def _raw_folders(job: Job, roots: Sequence[Path]) -> list[Path]:
    """Return the folders that may contain the raw files."""
    spec = job.data.pack
    said = [Path(absolute_uri(spec.root))] if spec is not None and spec.root is not None else []
    return [*roots] or said


def _listings(
    store: Store, manifest: Manifest, places: Sequence[Path], deep: bool, on_progress: ProgressCallback
) -> Iterator[Link]:
    digests = manifest.provenance.get("sources")
    if not digests:
        yield Link(
            "raw files", "unknown", detail="packed before they were recorded; packing again records them"
        )
        return
    wheels: dict[str, Path] = {}
    if manifest.provenance.get("source") == "photographs":
        wheels = _wheels()
    for digest in digests:
        try:
            files = read_listing(store, digest)
        except ShardsError as error:
            yield Link("raw files", "broken", digest, str(error))
            continue
        if not places and not wheels:
            told = "listed; where they lie is not recorded: give --root FOLDER"
            yield Link(f"{len(files)} raw files", "unknown", digest, told)
            continue
        links = tuple(
            _raw(file, [wheels.get(file.name), *(p / file.name for p in places)], deep)
            for file in counted(files, on_progress)
        )
        yield Link(f"{len(files)} raw files", _worst(links), digest, below=links)


def _wheels() -> dict[str, Path]:
    found = {}
    for photograph in PHOTOGRAPHS:
        try:
            name, path = photograph_file(photograph)
        except PackError:  # the wheel with this photograph is not installed
            continue
        found[name] = path
    return found


def _raw(file: ListedFile, candidates: Sequence[Path | None], deep: bool) -> Link:
    path = next((path for path in candidates if path is not None and path.is_file()), None)
    if path is None:
        return Link(file.name, "broken", file.sha256, "gone")
    size, found = measure(path) if deep else (path.stat().st_size, file.sha256)
    if (size, found) != (file.size, file.sha256):
        return Link(file.name, "broken", file.sha256, f"{path} is another file now")
    return Link(file.name, "verified" if deep else "present", file.sha256)


def _worst(links: Sequence[Link]) -> State:
    order: tuple[State, ...] = ("broken", "unknown", "present")
    return next((state for state in order if any(link.state == state for link in links)), "verified")
