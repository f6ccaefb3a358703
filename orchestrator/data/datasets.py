"""The datasets of a job: locate, pack and open them, and build its mixture, order, stream and evaluation set."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import ValidationError

from orchestrator.config import crop_stages
from orchestrator.config.conflicts import source_conflicts
from orchestrator.config.job_schemas import EvaluateJob, PackJob
from orchestrator.config.pipelines import large_kernels, pipelines_of
from orchestrator.config.schema import Data, Example, Job, Pack, Training
from orchestrator.data.sources import file_records, source_of
from orchestrator.errors import PlanError
from orchestrator.paths import absolute_uri, below, shard_cache_folder
from shards import jpeg_intervals
from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.errors import ToolError
from shards.file_records import FileRecords
from shards.listing import listing_key
from shards.manifest import ORIGINAL, POINTER, Manifest, load_manifest
from shards.mixture import Mixture, MixtureEntry, weighted_mixture
from shards.order import SampleOrder
from shards.pack import pack
from shards.processes import ProcessPool, TaskRunner, available_cores
from shards.progress import ProgressCallback
from shards.sample import DEGRADATIONS, NOISE, row_degradation
from shards.sources import Source
from shards.sources.held_out import SPLIT
from shards.store import Store, open_store

if TYPE_CHECKING:
    from webdataset import DataPipeline

    from shards.evaluation import EvaluationSet
    from shards.stream import TrainStream


PACK_PHASES = ("reading", "packing", "hashing")
"""Labels of `PackCallbacks`."""


class PackCallbacks(NamedTuple):
    """Progress callbacks of packing."""

    scan: ProgressCallback
    """Called for every image whose header was read."""
    pack: ProgressCallback
    """Called for every packed pair."""
    hash: ProgressCallback
    """Called for every raw file that was hashed."""


def manifest_uris(job: Training | PackJob | EvaluateJob) -> tuple[str, ...]:
    """Return the absolute URIs of the job's packed datasets."""
    return tuple(below(job.storage, name) for name in job.data.manifests)


def open_dataset_at(uris: Sequence[str], digests: Sequence[str], spec: Data) -> Dataset:
    """Open the datasets with these manifest digests at `uris`, whatever was published there since."""
    return Dataset(uris, _cache(spec.cache_gib), digests)


def open_uris(uris: Sequence[str]) -> Dataset:
    """Open packed datasets by URI or folder. Raises ShardsError."""
    return Dataset([absolute_uri(uri) for uri in uris], _cache())


def open_pipeline_at(uri: str, split: str | None, degradation: str | None) -> DataPipeline:
    """Return the samples of a packed dataset as a WebDataset pipeline. Raises ShardsError."""
    from shards.pipeline import open_pipeline  # imports torch, as all of these do

    return open_pipeline(absolute_uri(uri), _cache(), split=split, degradation=degradation)


def open_dataset(job: Training) -> Dataset:
    """Open the job's packed datasets as one. Raises ShardsError."""
    return Dataset(manifest_uris(job), _cache(job.data.cache_gib))


def open_benchmarks(job: EvaluateJob, digests: Sequence[str] = ()) -> list[Dataset]:
    """Open each benchmark of the job as a dataset of its own, by `digests` where given. Raises ShardsError."""
    uris = manifest_uris(job)
    asked: Sequence[Sequence[str]] = [(digest,) for digest in digests] or [()] * len(uris)
    cache = _cache(job.data.cache_gib)
    return [Dataset((uri,), cache, digest) for uri, digest in zip(uris, asked, strict=True)]


def ensure_packed(
    job: Training | PackJob, callbacks: PackCallbacks | None = None, runner: TaskRunner | None = None
) -> bool:
    """Pack the job's data unless it is already packed; return whether anything was packed.

    `runner` executes the shard tasks; the default is one process per core of this machine.
    Raises PlanError when the data was packed with other settings; nothing is overwritten.
    """
    spec = job.data.pack
    if spec is None:
        return False
    (uri,) = manifest_uris(job)
    store = open_store(uri)
    store.ensure_bucket()
    records = file_records()
    source = source_of(spec, callbacks and callbacks.hash, records)
    if _held(store, source, spec) is not None:
        return False
    name = job.data.manifests[0].rstrip("/").rsplit("/", 1)[-1]
    runner = ProcessPool(available_cores()) if runner is None else runner
    _pack(spec, source, store, name, runner, callbacks, records)
    return True


class PackOutcome(NamedTuple):
    """Result of packing a dataset."""

    manifest: Manifest
    uri: str
    """Absolute URI of the dataset."""
    packed: bool
    """Whether anything was packed: False when the whole dataset was there already."""
    notice: str
    """One line about JPEG files, or nothing."""


def pack_dataset(
    spec: Mapping[str, object], out: str, callbacks: PackCallbacks, jobs: int, *, reread: bool = False
) -> PackOutcome:
    """Pack the dataset described by `spec`, a `data.pack` section, unless the whole of it is there already.

    `jobs` is the number of processes. Raw files that did not change since they were last read are not read, unless
    `reread`. Raises PlanError, or ShardsError.
    """
    try:
        chosen = Pack.model_validate(spec)
    except ValidationError as error:
        errors = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise PlanError(f"{errors}. See: mirage pack --help") from None
    conflicts = [f"--{key.replace('_', '-')} {message}" for key, message in source_conflicts(chosen)]
    if conflicts:
        raise PlanError(" ".join(conflicts))
    uri = absolute_uri(out)
    records = file_records(reread=reread)
    source, store = source_of(chosen, callbacks.hash, records), open_store(uri)
    store.ensure_bucket()
    held = _held(store, source, chosen)
    if held is not None and _is_whole(store, held, source, chosen):
        return PackOutcome(held, uri, False, jpeg_notice(held, chosen, tried=False))
    alike = _like(held, chosen)
    if held is not None and held.provenance.get("jpeg") == "cut" and jpeg_intervals.tool() is None:
        raise ToolError(
            f"{uri} holds JPEG files that were cut by jpegtran, which is not installed here. Nothing is overwritten. "
            f"To pack it again, install jpegtran ({jpeg_intervals.INSTALL}). To keep JPEG files whole, pack with "
            "--jpeg keep under another name."
        )
    name = uri.rsplit("/", 1)[-1]
    manifest = _pack(alike, source, store, name, ProcessPool(jobs), callbacks, records)
    return PackOutcome(manifest, uri, True, jpeg_notice(manifest, chosen, tried=alike.jpeg == "crop"))


def jpeg_notice(manifest: Manifest, spec: Pack | None, *, tried: bool) -> str:
    """Return one line about JPEG files that did not stay as they were, or that `spec` asks to cut and are whole.

    `tried` says whether cutting them was tried now.
    """
    facts = manifest.provenance
    before, after = facts.get("jpeg_cut_bytes") or facts.get("jpeg_tiled_bytes") or (0, 0)
    if before:
        ratio = f"{after / before:.2f} times their bytes: {before:,} became {after:,}"
        if facts["jpeg"] == "tiled":
            return f"JPEG files as tiles take {ratio}"
        whole = facts.get("jpeg_kept_whole", 0)
        return f"JPEG files cut for crops take {ratio}" + (f"; {whole:,} others are whole" if whole else "")
    asked = spec is not None and spec.jpeg == "crop" and spec.encoding != ORIGINAL
    if not asked or ORIGINAL not in manifest.columns.encodings:
        return ""
    if jpeg_intervals.tool() is None:
        way = f"install jpegtran ({jpeg_intervals.INSTALL}) and pack under another name to cut them"
    else:
        way = "jpegtran cannot cut them" if tried else "pack under another name to cut them"
    return f"JPEG files are whole, and each crop decodes its whole file: {way}"


def planned_counts(job: Job) -> dict[str, int]:
    """Return the number of training samples that packing will give for each degradation of the job's mixture."""
    assert job.data.pack is not None, "only a job that packs has planned counts"
    held = source_of(job.data.pack).training_counts()
    return {d: held.get(row_label(job, d), 0) for d in job.data.mixture}


def counts(dataset: Dataset, job: Training) -> dict[str, int]:
    """Return the number of training samples for each degradation of the job's mixture."""
    return {d: len(dataset.rows("train", row_label(job, d))) for d in job.data.mixture}


def row_label(job: Training | EvaluateJob, degradation: str) -> str:
    """Return the label of the rows that serve a degradation: clean-only ones for noise levels and pipelines."""
    return NOISE if degradation in job.degradations else row_degradation(degradation)


def check_holds(dataset: Dataset, job: Job) -> None:
    """Raise PlanError unless the data has samples of every degradation that the job trains on or evaluates."""
    missing = [f"data.mixture trains on {d}" for d, n in counts(dataset, job).items() if n == 0]
    missing += [
        f"evaluate.degradations names {d}"
        for d in job.evaluate.degradations
        if not dataset.rows("test", row_label(job, d))
    ]
    if job.example is not None:
        example_id(dataset, job, job.example)
    check_names(dataset, job)
    if missing:
        held = {name for each in dataset.manifests for split in each.counts().values() for name in split}
        raise PlanError(
            f"data.manifests: {', '.join(manifest_uris(job))} has no samples for it, but {'; '.join(missing)}. "
            f"The data has {', '.join(sorted(held))}. "
            "Pack the other data too, or take the degradation out of the job."
            f"{_meant(job, held)}{_clean_hint(job, held)}"
        )


def _meant(job: Job, held: Set[str]) -> str:
    """Return what names that neither the job nor the data has may mean: a preset, or one that is spelt otherwise."""
    from shards.degradations.presets import PRESETS

    words = []
    for name in dict.fromkeys([*job.data.mixture, *job.evaluate.degradations]):
        if name in held or name in job.degradations or name in DEGRADATIONS:
            continue
        near = difflib.get_close_matches(name, [*job.degradations, *held], n=1)
        if name in PRESETS:
            words.append(
                f" {name} is a preset: name it in a pipeline, degradations: {{my-{name}: [use: {name}]}}."
            )
        elif near:
            words.append(f' {name}: did you mean "{near[0]}"?')
    return "".join(words)


def _clean_hint(job: Job, held: Set[str]) -> str:
    """Return what pipelines need, if the job has some and the data holds no clean photographs."""
    if not job.degradations or NOISE in held:
        return ""
    return " Pipelines need clean photographs, which are called noise here: mirage pack clean."


def check_names(dataset: Dataset, job: Training | EvaluateJob) -> None:
    """Raise PlanError if packed pairs have the name of a pipeline of the job."""
    packed = {name for each in dataset.manifests for split in each.counts().values() for name in split}
    if twice := sorted(packed & set(job.degradations)):
        raise PlanError(
            f"degradations.{twice[0]}: {', '.join(dataset.uris)} has pairs of this name. Give the pipeline another one."
        )


def check_kernels(dataset: Dataset, job: Training | EvaluateJob, degradations: Iterable[str]) -> None:
    """Raise PlanError if a kernel of an evaluated pipeline is too large for the smallest held-out photograph."""
    pipelines = pipelines_of(job)
    evaluated = [pipelines[name] for name in degradations if name in pipelines]
    rows = dataset.rows("test", NOISE)
    if not evaluated or not len(rows):
        return
    sides = np.concatenate([np.minimum(each["width"], each["height"]) for each in rows.clean_images()])
    smallest = int(sides.argmin())
    image, cure = f"the held-out photograph {rows[smallest].id}", "Take such photographs out of the data"
    for pipeline in evaluated:
        for key, message in large_kernels(pipeline, int(sides[smallest]), image, cure):
            raise PlanError(f"{key}: {message}")


def example_id(dataset: Dataset, job: Job, example: Example) -> str:
    """Return the id of the held-out photograph that an example names in full or by its last part. Raises PlanError."""
    known = [row.id for row in dataset.rows("test", row_label(job, example.degradation))]
    named = [one for one in known if one == example.photograph] or [
        one for one in known if one.rpartition("/")[2] == example.photograph
    ]
    if len(named) != 1 or example.degradation not in job.evaluate.degradations:
        several = f", but {len(named)} have this name" if len(named) > 1 else ""
        raise PlanError(
            f"example: no held-out photograph {example.photograph!r} is evaluated with {example.degradation}{several}. "
            f"There are: {', '.join(sorted(known)) or 'none'}."
        )
    return named[0]


def mixture(job: Training, held: Mapping[str, int]) -> Mixture:
    """Return the job's mixture, for `held` samples of each degradation in the data."""
    mixed = Mixture(tuple(MixtureEntry(d, held[d], repeat) for d, repeat in job.data.mixture.items()))
    if job.data.weights is None:
        return mixed
    named: dict[str, int] = {d: held[d] for d in job.data.mixture}
    weights: dict[str, float] = {d: job.data.weights[d] for d in job.data.mixture}
    return weighted_mixture(named, weights, job.data.samples_per_epoch or mixed.samples_per_epoch)


def order(job: Training, held: Mapping[str, int]) -> SampleOrder:
    """Return the order of the job's samples without a window, which needs the opened data."""
    return SampleOrder(
        mixture(job, held), job.seed, job.train.global_batch_size, job.data.tail, job.data.sampling
    )


def train_stream(dataset: Dataset, job: Training) -> TrainStream:
    """Return the stream of training batches that the job describes."""
    from shards.stream import TrainStream

    planned = order(job, counts(dataset, job))
    spec = job.data
    return TrainStream(
        dataset,
        planned.mixture,
        seed=job.seed,
        stages=crop_stages.stages(job, planned.positions_per_epoch),
        augmentation=spec.augmentation,
        global_batch_size=job.train.global_batch_size,
        micro_batches=job.train.micro_batches,
        sampling=spec.sampling,
        tail=spec.tail,
        window=spec.shuffle_window,
        multiple=spec.crop_multiple,
        on_corrupt=spec.on_corrupt,
        readers=spec.readers,
        # Half, so that readers are replaced before the other workers give up on this one.
        reader_timeout_seconds=job.workers.collective_timeout_seconds / 2,
        pipelines=pipelines_of(job),
        margin=spec.margin_pixels,
    )


def evaluation_set(dataset: Dataset, job: Job) -> EvaluationSet:
    """Return the held-out images of every degradation that the job evaluates."""
    from shards.evaluation import EvaluationSet

    multiple = 16 if job.evaluate.protocol == "rgb-crop16" else 1
    # Pipelines have seed 0 and not the job's, so that models of other seeds are measured on the same images.
    return EvaluationSet(
        dataset, job.evaluate.degradations, seed=job.seed, multiple=multiple, pipelines=pipelines_of(job)
    )


def evaluated_pipelines(job: Training) -> dict[str, str]:
    """Return the digest of each pipeline that `evaluation_set` shows."""
    known = pipelines_of(job)
    return {name: known[name].evaluation_digest(0) for name in job.evaluate.degradations if name in known}


def _pack(
    spec: Pack,
    source: Source,
    store: Store,
    name: str,
    runner: TaskRunner,
    callbacks: PackCallbacks | None,
    records: FileRecords,
) -> Manifest:
    return pack(
        source,
        store,
        name=name,
        encoding=spec.encoding,
        jpeg=spec.jpeg,
        allow_partial=spec.allow_partial,
        shard_bytes=spec.shard_mib << 20,
        runner=runner,
        on_progress=callbacks and callbacks.pack,
        on_scan=callbacks and callbacks.scan,
        records=records,
    )


def _held(store: Store, source: Source, spec: Pack) -> Manifest | None:
    """Return what `store` holds if it is what packing `source` gives, None if it holds nothing.

    Raises PlanError if it holds something else.
    """
    if store.read_pointer(POINTER) is None:
        return None
    manifest = load_manifest(store, cache=shard_cache_folder())
    # Before the option existed, all JPEG files were tiled.
    found = {"jpeg": "tiled", **manifest.provenance}
    wanted = {**source.provenance, "encoding": spec.encoding, "jpeg": _stored_jpeg(spec, found["jpeg"])}
    different = [key for key, value in wanted.items() if found.get(key) != value]
    if different:
        differences = "; ".join(f"{key} {found.get(key)!r}, not {wanted[key]!r}" for key in different)
        raise PlanError(
            f"{store.uri} holds a dataset that was packed with other settings: {differences}. "
            f"Nothing is overwritten: give the new dataset another name.{_way_out(wanted, found)}"
        )
    return manifest


def _stored_jpeg(spec: Pack, found: object) -> object:
    """Return what a manifest says of JPEG files that were packed as `spec` asks, where it now says `found`."""
    if spec.encoding == ORIGINAL or (spec.jpeg == "crop" and found == "kept"):
        return "kept"
    return {"crop": "cut", "keep": "kept", "tile": "tiled"}[spec.jpeg]


def _like(held: Manifest | None, spec: Pack) -> Pack:
    """Return `spec` for packing again what is held: files that are kept whole stay so until another word asks."""
    if held is None or spec.jpeg != "crop" or ORIGINAL not in held.columns.encodings:
        return spec
    cut = held.provenance.get("jpeg") == "cut"  # then the whole ones are those that cannot be cut
    return spec if cut else spec.model_copy(update={"jpeg": "keep"})


def _way_out(wanted: Mapping[str, object], found: Mapping[str, object]) -> str:
    """Return what else a user can do whose dataset is older than the meaning of the field `{split}`."""
    if wanted.get("held_out") != f"{{{SPLIT}}}" or not isinstance(found.get("held_out"), float | int):
        return ""
    return (
        " The field {split} of the patterns now says which pairs are for training: to train on the dataset as it is, "
        "leave data.pack out of the job; to pack such files without it, rename the field."
    )


def _is_whole(store: Store, manifest: Manifest, source: Source, spec: Pack) -> bool:
    """Return whether packing again would write nothing: all objects are there, and the other options fit too.

    Images that were left out are tried again.
    """
    facts = manifest.provenance
    if facts.get("shard_bytes") != spec.shard_mib << 20 or facts.get("missing"):
        return False
    if dict(source.licences) != manifest.licences:
        return False
    there = {*store.list("shards/"), *store.list("sources/")}
    listings = (listing_key(digest) for digest in facts.get("sources", ()))
    return there.issuperset(shard.key for shard in manifest.shards) and there.issuperset(listings)


def _cache(gib: float = 20.0) -> ShardCache:
    return ShardCache(shard_cache_folder(), int(gib * 2**30))
