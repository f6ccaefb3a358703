"""The training stream: one global stream, whoever computes it, wherever it is entered and stored."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.augment import crop16, draw_mode, draw_window, keyed_rng, orient
from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.errors import CorruptObjectError, ManifestError, MixtureError
from shards.manifest import Manifest, publish
from shards.noise import add_noise
from shards.pack import pack
from shards.sources import FolderSource
from shards.store import LocalStore, Store, open_store
from shards.stream import Batch, TrainStream, read_ledger

MIXTURE = [("noise15", 2), ("noise25", 1), ("rain", 3), ("haze", 1)]
BATCH = 7


def stream_of(dataset: Dataset, **changes) -> TrainStream:
    settings = {"seed": 5, "crop_pixels": 32, "global_batch_size": BATCH}
    return TrainStream(dataset, MIXTURE, **{**settings, **changes})


def samples(batches: list[Batch]) -> dict[int, tuple]:
    """What stands at each position, down to the noisy floats."""
    found: dict[int, tuple] = {}
    for batch in batches:
        floats = [image.numpy() for image in batch.floats("cpu", seed=5)]
        for index, position in enumerate(batch.positions.tolist()):
            assert position not in found, f"position {position} came twice"
            found[position] = (
                batch.degradations[index],
                batch.ids[index],
                float(batch.sigma[index]),
                *(image[index].tobytes() for image in floats),
            )
    return found


def run(stream: TrainStream, world: int, start: int, stop: int) -> dict[int, tuple]:
    return samples([b for rank in range(world) for b in stream.steps(start, world, rank, stop)])


@pytest.fixture
def reference(dataset: Dataset) -> dict[int, tuple]:
    return run(stream_of(dataset), 1, 0, 6 * BATCH)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_sample_order_survives_another_world(dataset: Dataset, reference, world: int):
    assert run(stream_of(dataset), world, 0, 6 * BATCH) == reference


def test_sample_order_survives_readers_and_resuming_at_any_step(dataset: Dataset, reference):
    with_readers = stream_of(dataset, readers=2)
    resumed = run(stream_of(dataset), 3, 0, 2 * BATCH) | run(with_readers, 1, 2 * BATCH, 6 * BATCH)
    assert resumed == reference


def test_a_long_epoch_can_be_entered_anywhere(dataset: Dataset):
    stream = stream_of(dataset)
    assert stream.order.positions_per_epoch == 28  # 3 * 2 + 3 * 1 + 6 * 3 + 6 * 1 = 33, in whole batches of 7
    far = 1_000_000 * BATCH
    assert run(stream, 2, far, far + 2 * BATCH) == run(stream, 1, far, far + 2 * BATCH)


@pytest.mark.parametrize("tail", ["drop", "carry"])
def test_the_tail_of_an_epoch_is_dropped_or_carried(dataset: Dataset, tail):
    stream = stream_of(dataset, tail=tail)
    epoch = list(stream.steps(0, 1, 0, 5 * BATCH))
    seen = [name for batch in epoch for name in zip(batch.degradations, batch.ids, strict=True)]
    counts = {sample: seen[: stream.order.positions_per_epoch].count(sample) for sample in seen}
    repeats = dict(MIXTURE)
    for (degradation, _), count in counts.items():
        assert count <= repeats[degradation] + (tail == "carry")
    if tail == "carry":
        first = seen[:33]
        assert all(first.count(sample) == repeats[sample[0]] for sample in first)


def test_micro_batches_cut_the_same_stream(dataset: Dataset):
    whole = run(stream_of(dataset, global_batch_size=12), 1, 0, 24)
    cut = stream_of(dataset, global_batch_size=12, micro_batches=3)
    assert run(cut, 1, 0, 24) == whole
    assert run(cut, 3, 0, 24) == whole
    batches = [list(cut.steps(0, 3, rank, 24)) for rank in range(3)]
    assert [len(worker) for worker in batches] == [6, 6, 6]
    assert [worker[0].share for worker in batches] == [(0, 4), (2, 4), (3, 4)]
    with pytest.raises(MixtureError, match="5 does not divide"):
        stream_of(dataset, global_batch_size=12, micro_batches=5)


def test_uneven_shares_say_where_they_lie(dataset: Dataset):
    first = [next(stream_of(dataset).steps(0, 3, rank)) for rank in range(3)]
    assert [batch.share for batch in first] == [(0, 7), (3, 7), (5, 7)]
    assert [len(batch.ids) for batch in first] == [3, 2, 2]
    assert torch.cat([batch.positions for batch in first]).tolist() == list(range(7))


def test_pixels_are_the_source_s_own(dataset: Dataset, source: FolderSource):
    pairs = {(pair.degradation, pair.id): pair for pair in source if pair.split == "train"}
    for batch in stream_of(dataset).steps(0, 1, 0, 4 * BATCH):
        for index, position in enumerate(batch.positions.tolist()):
            label = "noise" if batch.sigma[index] else batch.degradations[index]
            pair = pairs[label, batch.ids[index]]
            rng = keyed_rng(5, position)
            window = draw_window(rng, crop16(*pair.clean.size()), 32)
            mode = draw_mode(rng, "release")
            clean = pair.clean.pixels()
            degraded = clean if pair.degraded is None else pair.degraded.pixels()
            for image, whole in ((batch.clean, clean), (batch.degraded, degraded)):
                np.testing.assert_array_equal(image[index].permute(1, 2, 0), orient(window.of(whole), mode))


def test_floats_are_noisy_where_noise_was_asked_and_exact_elsewhere(dataset: Dataset):
    for batch in stream_of(dataset).steps(0, 1, 0, 4 * BATCH):
        degraded, clean = batch.floats("cpu", seed=5)
        assert degraded.dtype == clean.dtype == torch.float32
        assert clean.shape == (BATCH, 3, 32, 32)
        assert torch.equal(clean, batch.clean.float() / 255)
        noisy = add_noise(batch.clean, batch.sigma, batch.positions, 5)
        for index, name in enumerate(batch.degradations):
            expected = noisy if name.startswith("noise") else batch.degraded
            assert torch.equal(degraded[index], expected[index].float() / 255)
            assert batch.sigma[index] == {"noise15": 15, "noise25": 25}.get(name, 0)


def test_the_stream_is_the_same_from_every_store(each_store: Store, source: FolderSource, cache, reference):
    pack(source, each_store, name="cuts", encoding="compact", shard_bytes=50_000)
    assert run(stream_of(Dataset([each_store.uri], cache)), 1, 0, 6 * BATCH) == reference


def test_a_cache_smaller_than_the_data_gives_the_same_stream(rclone, aws, source, tmp_path, reference):
    aws.setenv("AWS_ENDPOINT_URL", rclone.endpoint)
    uri = f"s3://{rclone.bucket}/{tmp_path.name}"
    manifest = pack(source, open_store(uri), name="cuts", shard_bytes=100_000)
    small = ShardCache(tmp_path / "small", 2 * max(shard.size for shard in manifest.shards))
    assert run(stream_of(Dataset([uri], small)), 1, 0, 6 * BATCH) == reference


def test_several_datasets_are_one(photographs: Path, tmp_path: Path, cache):
    for name, encoding in (("rain", "fast"), ("haze", "compact")):
        store = LocalStore(tmp_path / name)
        pack(FolderSource(photographs, [name]), store, name=name, encoding=encoding, shard_bytes=1)
    both = Dataset([str(tmp_path / "rain"), str(tmp_path / "haze")], cache)
    assert len(both.rows("train", "rain")) == len(both.rows("train", "haze")) == 5
    for name in ("rain", "haze"):
        alone = Dataset([str(tmp_path / name)], cache)
        for row, same in zip(both.rows("train", name), alone.rows("train", name), strict=True):
            for image, expected in zip(both.read(row), alone.read(same), strict=True):
                np.testing.assert_array_equal(image, expected)
    with pytest.raises(ManifestError, match="Name it once"):
        Dataset([str(tmp_path / "rain")] * 2, cache)


def test_a_dataset_can_be_sent_to_another_process(dataset: Dataset):
    row = dataset.rows("train", "rain")[0]
    before = dataset.read(row)[1]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset)).read(row)[1], before)


def test_what_the_data_does_not_hold_is_said_before_training(dataset: Dataset):
    with pytest.raises(
        MixtureError, match=r"no training samples of 'blur'.*haze \(6\), noise \(3\), rain \(6\)"
    ):
        TrainStream(dataset, [("blur", 1)], seed=0, crop_pixels=32, global_batch_size=1)


def test_images_smaller_than_the_crop_are_named(dataset: Dataset):
    with pytest.raises(MixtureError, match=r"3 of 3 noise samples.*104.*brick \(130 x 97\)"):
        stream_of(dataset, crop_pixels=104)
    stream_of(dataset, crop_pixels=96)


@pytest.fixture
def own_copy(packed: tuple[str, Manifest], tmp_path: Path) -> tuple[Path, Manifest]:
    shutil.copytree(packed[0], tmp_path / "copy")
    return tmp_path / "copy", packed[1]


@pytest.mark.parametrize("readers", [0, 2])
def test_a_shard_that_is_damaged_stops_the_run_and_is_named(own_copy, cache, readers: int):
    folder, manifest = own_copy
    for shard in manifest.shards:
        file = folder / shard.key
        data = bytearray(file.read_bytes())
        data[3000] ^= 1
        file.write_bytes(bytes(data))
    stream = stream_of(Dataset([str(folder)], cache), readers=readers)
    with pytest.raises(
        CorruptObjectError, match=r"^[^\n]*shards/[0-9a-f]{64}\.tar does not fit its sha256[^\n]*$"
    ):
        list(stream.steps(0, 1, 0, 6 * BATCH))


def test_a_member_with_another_checksum_is_named(own_copy, cache):
    folder, manifest = own_copy
    rows = tuple(replace(row, clean=replace(row.clean, crc32=row.clean.crc32 ^ 1)) for row in manifest.rows)
    publish(LocalStore(folder), replace(manifest, rows=rows))
    dataset = Dataset([str(folder)], cache)
    row = dataset.rows("train", "rain")[0]
    with pytest.raises(CorruptObjectError, match=f"{row.id!r} at byte .*checksum"):
        dataset.read(row)


def test_the_ledger_holds_every_position_once_across_resizes(dataset: Dataset, tmp_path: Path, reference):
    stream = stream_of(dataset, ledger=tmp_path)
    run(stream, 3, 0, 3 * BATCH)
    run(stream, 2, 2 * BATCH, 6 * BATCH)  # one step is repeated, as after a crash
    ledger = read_ledger(tmp_path)
    assert sorted(ledger) == list(range(6 * BATCH))
    assert ledger == {position: sample[:2] for position, sample in reference.items()}


def test_a_ledger_that_contradicts_itself_is_refused(dataset: Dataset, tmp_path: Path):
    run(stream_of(dataset, ledger=tmp_path), 1, 0, BATCH)
    run(stream_of(dataset, ledger=tmp_path, seed=6), 2, 0, BATCH)
    with pytest.raises(MixtureError, match=r"position \d+ is"):
        read_ledger(tmp_path)
