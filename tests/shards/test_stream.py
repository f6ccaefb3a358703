"""The training stream: one global stream, whoever computes it, wherever it is entered and stored."""

from __future__ import annotations

import pickle
import shutil
import time
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.augment import centre_window, draw_crop, draw_orientation, keyed_rng, orient
from shards.cache import ShardCache
from shards.crop_schedule import CropSchedule, TrainingStage
from shards.dataset import Dataset
from shards.errors import (
    CorruptObjectError,
    ManifestError,
    MixtureError,
    StoreError,
    UnreachableStoreError,
)
from shards.manifest import Manifest, publish
from shards.mixture import Mixture, MixtureEntry, weighted_mixture
from shards.noise import add_noise
from shards.pack import pack
from shards.sources import FolderSource
from shards.store import LocalStore, Store, open_store
from shards.stream import Batch, TrainStream
from tests.claims import wait_until

MIXTURE = [("noise15", 2), ("noise25", 1), ("rain", 3), ("haze", 1)]
BATCH = 7


def stream_of(dataset: Dataset, **changes) -> TrainStream:
    settings = {"seed": 5, "crop_pixels": 32, "global_batch_size": BATCH}
    return TrainStream(dataset, MIXTURE, **{**settings, **changes})


def samples(batches: list[Batch]) -> dict[int, tuple]:
    """What stands at each position, down to the noisy floats."""
    found: dict[int, tuple] = {}
    for batch in batches:
        floats = [image.numpy() for image in batch.to_float("cpu", seed=5)]
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
    batches = list(stream_of(dataset).steps(0, 1, 0, 4 * BATCH))
    assert len(batches) == 4
    for batch in batches:
        for index, position in enumerate(batch.positions.tolist()):
            label = "noise" if batch.sigma[index] else batch.degradations[index]
            pair = pairs[label, batch.ids[index]]
            rng = keyed_rng(5, position)
            window = draw_crop(rng, centre_window(*pair.clean.size()), 32)
            mode = draw_orientation(rng, "release")
            clean = pair.clean.pixels()
            degraded = clean if pair.degraded is None else pair.degraded.pixels()
            for image, whole in ((batch.clean, clean), (batch.degraded, degraded)):
                np.testing.assert_array_equal(image[index].permute(1, 2, 0), orient(window.of(whole), mode))


def test_floats_are_noisy_where_noise_was_asked_and_exact_elsewhere(dataset: Dataset):
    batches = list(stream_of(dataset).steps(0, 1, 0, 4 * BATCH))
    assert len(batches) == 4
    for batch in batches:
        degraded, clean = batch.to_float("cpu", seed=5)
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
        CorruptObjectError, match=r"^[^\n]*shards/[0-9a-f]{64}\.tar does not match its sha256[^\n]*$"
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


# --- worlds, windows, stages ---------------------------------------------------------------------------------


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_stream_is_one_for_random_worlds_seeds_sizes_and_interruptions(
    dataset: Dataset, data: st.DataObject
):
    """Every change that a cluster can bring, at any step; the positions are consumed once, with the same pixels."""
    batch = data.draw(st.integers(1, 9))
    pixels = data.draw(st.sampled_from([16, 32, 48]))
    options = {
        "seed": data.draw(st.integers(0, 2**62)),
        "global_batch_size": batch,
        "crop_pixels": pixels,
        "tail": data.draw(st.sampled_from(["drop", "carry"])),
        "augmentation": data.draw(st.sampled_from(["release", "paper", "none"])),
        "window": data.draw(st.sampled_from([None, 1, 2])),
        "multiple": data.draw(st.sampled_from([1, 16])),
    }
    if data.draw(st.booleans()):
        options["stages"] = CropSchedule(
            (TrainingStage(0, pixels, batch), TrainingStage(2, 64, data.draw(st.integers(1, 9))))
        )
    stream = stream_of(dataset, **options)
    first = data.draw(st.integers(0, 10**6))
    steps = data.draw(st.integers(1, 4))
    edges = [stream.stages.position_at(step) for step in range(first, first + steps + 1)]
    whole = run(stream, 1, edges[0], edges[-1])
    found: dict[int, tuple] = {}
    for start, stop in pairwise(edges):
        smallest = min(stage.batch for stage in stream.stages.stages)
        world = data.draw(st.integers(1, smallest))
        piece = run(stream_of(dataset, **options), world, start, stop)
        assert not piece.keys() & found.keys()
        found |= piece
    assert found == whole
    assert sorted(found) == list(range(edges[0], edges[-1]))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more readers than cores, on purpose
@pytest.mark.parametrize("readers", [1, 3])
def test_any_number_of_readers_reads_windows_and_stages_alike(dataset: Dataset, readers: int):
    options = {"window": 1, "stages": CropSchedule((TrainingStage(0, 32, 6), TrainingStage(3, 64, 4)))}
    stop = options["stages"].position_at(6)
    alone = run(stream_of(dataset, **options), 1, 0, stop)
    assert run(stream_of(dataset, **options, readers=readers), 2, 0, stop) == alone


def test_stages_change_crop_and_batch_at_their_step(dataset: Dataset):
    stages = CropSchedule((TrainingStage(0, 32, 8), TrainingStage(2, 48, 4), TrainingStage(3, 64, 2)))
    stream = stream_of(dataset, stages=stages, micro_batches=2)
    batches = list(stream.steps(0, 1, 0, stages.position_at(5)))
    sizes = [tuple(batch.clean.shape[:1]) + tuple(batch.clean.shape[2:3]) for batch in batches]
    assert sizes == [(4, 32)] * 4 + [(2, 48)] * 2 + [(1, 64)] * 4
    assert torch.cat([batch.positions for batch in batches]).tolist() == list(range(24))
    entered = list(stream.steps(stages.position_at(2), 1, 0, stages.position_at(5)))
    assert samples(entered) == samples(batches[4:])
    with pytest.raises(MixtureError, match="104"):
        stream_of(dataset, stages=CropSchedule((TrainingStage(0, 32, 8), TrainingStage(2, 104, 4))))
    with pytest.raises(MixtureError, match="3 does not divide the global batch of 4"):
        stream_of(
            dataset, stages=CropSchedule((TrainingStage(0, 32, 6), TrainingStage(2, 48, 4))), micro_batches=3
        )


def test_a_window_reads_few_shards_at_a_time_from_real_data(packed: tuple[str, Manifest], cache: ShardCache):
    dataset = Dataset([packed[0]], cache)
    stream = stream_of(dataset, window=1, tail="carry")
    shard = {(e, row.id): row.clean.shard for e, rows in enumerate(stream._rows) for row in rows}
    names = [entry.degradation for entry in stream.order.mixture.entries]
    seen = [
        shard[names.index(d), id_]
        for batch in stream.steps(0, 1, 0, 4 * BATCH)
        for d, id_ in zip(batch.degradations, batch.ids, strict=True)
    ]
    changes = sum(a != b for a, b in pairwise(seen))
    arrangement = stream.order.windows.arrange(stream.order, 0)
    assert changes <= len(arrangement.ends), "the shard changes at most once per window"
    assert len(set(seen)) > 1


def test_weights_mix_real_data(dataset: Dataset):
    mixture = weighted_mixture({"rain": 6, "haze": 6}, {"rain": 3.0, "haze": 1.0}, 40)
    stream = TrainStream(dataset, mixture, seed=1, crop_pixels=32, global_batch_size=8)
    names = [name for batch in stream.steps(0, 1, 0, 40) for name in batch.degradations]
    assert (names.count("rain"), names.count("haze")) == (30, 10)
    with pytest.raises(MixtureError, match=r"counts 7 samples of 'rain'.*has 6"):
        TrainStream(
            dataset, Mixture((MixtureEntry("rain", 7, 1),)), seed=1, crop_pixels=32, global_batch_size=1
        )


def test_noise_may_stay_float(dataset: Dataset):
    batch = next(b for b in stream_of(dataset).steps() if b.sigma.any() and not b.sigma.all())
    exact, clean = batch.to_float("cpu", 5, "float")
    cut, _ = batch.to_float("cpu", 5)
    noisy = batch.sigma > 0
    assert torch.equal(exact[~noisy], cut[~noisy])
    truncated = (exact[noisy] * 255).clamp(0, 255) - cut[noisy] * 255
    assert truncated.min() > -1e-3
    assert truncated.max() < 1 + 1e-3
    assert not torch.equal(exact[noisy] * 255, (exact[noisy] * 255).round())
    assert torch.equal(clean, batch.clean.float() / 255)


# --- damage --------------------------------------------------------------------------------------------------


def damage_one(folder: Path, manifest: Manifest, dataset: Dataset) -> set[str]:
    """Flip a byte of the shard that holds the first training sample of rain; the ids that lie in it."""
    shard = dataset.rows("train", "rain")[0].clean.shard
    file = folder / manifest.shards[shard].key
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    rows = [row for name in ("noise", "rain", "haze") for row in dataset.rows("train", name)]
    return {f"{row.degradation} {row.id}" for row in rows if row.clean.shard == shard}


def test_by_choice_damage_is_left_out_counted_and_the_same_for_all(own_copy, cache, caplog):
    folder, manifest = own_copy
    healthy = run(stream_of(Dataset([str(folder)], cache)), 1, 0, 6 * BATCH)
    lost = damage_one(folder, manifest, Dataset([str(folder)], cache))
    stream = stream_of(Dataset([str(folder)], cache), on_corrupt="skip")
    batches = list(stream.steps(0, 1, 0, 6 * BATCH))
    skipped = {position: (d, id_, why) for b in batches for position, d, id_, why in b.skipped}
    assert skipped
    assert all("does not match its sha256" in why for _, _, why in skipped.values())
    assert {f"{'noise' if d.startswith('noise') else d} {id_}" for d, id_, _ in skipped.values()} <= lost
    found = samples(batches)
    for position, sample in found.items():
        if position not in skipped:
            assert sample == healthy[position]
        else:
            assert sample[0] == healthy[position][0], "a stand-in is of the same degradation"
            assert sample[1] != healthy[position][1]
    assert len([r for r in caplog.records if "replaced damaged sample" in r.message]) == sum(
        len(b.skipped) for b in batches
    )
    for world, readers in ((3, 0), (1, 2)):
        again = stream_of(Dataset([str(folder)], cache), on_corrupt="skip", readers=readers)
        assert run(again, world, 0, 6 * BATCH) == found


def test_a_damaged_shard_that_is_met_again_holds_nothing_of_the_batches_before(own_copy, cache):
    folder, manifest = own_copy
    damage_one(folder, manifest, Dataset([str(folder)], cache))
    dataset = Dataset([str(folder)], cache)
    told = []
    for _ in range(3):
        with pytest.raises(CorruptObjectError, match="does not match its sha256") as error:
            dataset.read(dataset.rows("train", "rain")[0])
        told.append(error.value)
    assert len({id(one) for one in told}) == 3
    assert len({str(one) for one in told}) == 1


def test_a_missing_shard_stops_the_run_or_by_choice_is_left_out(rclone, aws, source, tmp_path, cache):
    aws.setenv("AWS_ENDPOINT_URL", rclone.endpoint)
    store = open_store(f"s3://{rclone.bucket}/{tmp_path.name}")
    manifest = pack(source, store, name="cuts", shard_bytes=100_000)
    store.delete(manifest.shards[0].key)
    with pytest.raises(StoreError, match=manifest.shards[0].key):
        list(stream_of(Dataset([store.uri], cache)).steps(0, 1, 0, 6 * BATCH))
    by_choice = stream_of(Dataset([store.uri], cache), on_corrupt="skip")
    assert sum(len(batch.skipped) for batch in by_choice.steps(0, 1, 0, 6 * BATCH)) > 0


def test_a_run_whose_samples_are_all_damaged_stops_even_so(own_copy, cache):
    folder, manifest = own_copy
    for shard in manifest.shards:
        (folder / shard.key).write_text("<html>503 Slow Down</html>")
    stream = stream_of(Dataset([str(folder)], cache), on_corrupt="skip")
    with pytest.raises(CorruptObjectError, match=r"position 0: 20 consecutive samples.*shards/"):
        next(stream.steps())


def test_a_server_that_is_gone_is_never_skipped(rclone, aws, source, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    aws.setenv("AWS_ENDPOINT_URL", rclone.endpoint)
    uri = f"s3://{rclone.bucket}/{tmp_path.name}"
    pack(source, open_store(uri), name="cuts", shard_bytes=100_000)
    dataset = Dataset([uri], ShardCache(tmp_path / "cache", 1 << 30))
    aws.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    gone = pickle.loads(pickle.dumps(dataset))  # its connections are made anew
    with pytest.raises(UnreachableStoreError, match=r"127\.0\.0\.1:9 did not answer"):
        next(stream_of(gone, on_corrupt="skip").steps())


def test_a_bucket_that_vanishes_in_mid_epoch_is_named(rclone, aws, source, tmp_path):
    aws.setenv("AWS_ENDPOINT_URL", rclone.endpoint)
    bucket = "vanishing"
    store = open_store(f"s3://{bucket}/x")
    store.ensure_bucket()
    manifest = pack(source, store, name="cuts", shard_bytes=100_000)
    room = max(shard.size for shard in manifest.shards)
    dataset = Dataset([store.uri], ShardCache(tmp_path / "cache", room))
    batches = stream_of(dataset, on_corrupt="skip").steps()
    next(batches)
    for key in store.list():
        store.delete(key)
    store._connection().delete_bucket(Bucket=bucket)
    with pytest.raises(StoreError, match="no bucket 'vanishing'"):
        list(islice(batches, 20))


def test_the_next_window_is_fetched_before_it_is_read(rclone, aws, source, tmp_path, monkeypatch):
    aws.setenv("AWS_ENDPOINT_URL", rclone.endpoint)
    uri = f"s3://{rclone.bucket}/{tmp_path.name}"
    manifest = pack(source, open_store(uri), name="cuts", shard_bytes=50_000)
    room = 4 * max(shard.size for shard in manifest.shards)
    cache = ShardCache(tmp_path / "cache", room)
    dataset = Dataset([uri], cache)
    stream = stream_of(dataset, window=1, tail="carry")
    windows = [shards for _, shards in islice(stream.order.windows.ahead(stream.order, 0), 3)]
    batches = stream.steps()
    next(batches)
    wanted = {manifest.shards[shard].sha256 for shards in windows[:2] for shard in shards}
    wait_until(
        lambda: wanted <= {path.stem for path in cache.folder.glob("*.tar")}, "the next window is fetched"
    )
    for batch in islice(batches, 8):
        assert len(batch.ids) == BATCH
        assert sum(path.stat().st_size for path in cache.folder.glob("*.tar")) <= room
    batches.close()
