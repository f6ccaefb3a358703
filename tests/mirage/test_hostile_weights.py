"""Weights of strangers: one error, before memory or time are spent on what they claim."""

import io
import json
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_save

from mirage import MIRAGE, ModelConfig, load_release
from mirage.weights import CONFIG_KEY, PREFIX, WeightsError, dumps, loads, read_checkpoint, release_state_dict

SMALL = MIRAGE(ModelConfig(dim=6, blocks=(1, 1, 1, 1), heads=(1, 1, 1, 1), refinement_blocks=1))
GOOD = dumps(SMALL)
CONFIG = SMALL.config.to_dict()


def with_header(header: object) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def with_config(text: str) -> bytes:
    return safetensors_save({"a": torch.zeros(2)}, {CONFIG_KEY: text})


HOSTILE = {
    "metadata is a list": with_header({"__metadata__": []}),
    "metadata is text": with_header({"__metadata__": "x"}),
    "header is a list": with_header([]),
    "header is deep": with_header(b"[" * 50_000),
    "header of long numbers": with_header(b'{"a": ' + b"9" * 5000 + b"}"),
    "configuration is deep": with_config("[" * 50_000),
    "configuration is a list": with_config("[]"),
    "configuration is null": with_config("null"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_safetensors_file_is_one_error(kind: str) -> None:
    with pytest.raises(WeightsError):
        loads(HOSTILE[kind])


CLAIMS: dict[str, Any] = {
    "blocks": [[10**6] * 4, [1, 1, 1, 10**9], [1, 1, 1, "1"], [1, 1, 1, True], 4, [[1]] * 4, [1.0] * 4],
    "dim": [10**6, 2**70, 10**400, -6, 6.0, "6", None, [6], True],
    "refinement_blocks": [10**6, 10**12],
    "heads": [[10**9] * 4, [7, 7, 7, 7]],
    "spd_embed_dim": [10**6, 10**30],
    "spd_channels": [[10**6, 10**6]],
    "ffn_expansion": [1e300, float("inf"), float("nan"), -1.0, "2", None, 10**400],
    "branch_ratios": [[0, 0, 0], [10**9, 0, 0]],
    "drop_path": ["x", 5, None],
    "kernels": [[], {}, 5],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in CLAIMS.items() for value in values]
)
def test_no_network_is_built_for_a_configuration_that_its_file_cannot_hold(
    monkeypatch: pytest.MonkeyPatch, key: str, value: object
) -> None:
    monkeypatch.setattr("mirage.weights.MIRAGE", pytest.fail)
    with pytest.raises(WeightsError, match="unreadable weights"):
        loads(with_config(json.dumps({**CONFIG, key: value})))


def checkpoint(content: object) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def release(**changes: object) -> Mapping[str, object]:
    state = {f"{PREFIX}{name}": tensor for name, tensor in release_state_dict(SMALL).items()}
    return {"state_dict": {**state, **changes}}


def compressed(data: bytes) -> bytes:
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as source,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    return out.getvalue()


FIRST = "net.patch_embed.proj.weight"
CHECKPOINTS = {
    "empty": b"",
    "a byte": b"\x80",
    "names that are no text": checkpoint({"state_dict": {5: torch.zeros(1)}}),
    "values that are no tensors": checkpoint(release(**{FIRST: 5})),
    "a tensor without dimensions": checkpoint(release(**{FIRST: torch.tensor(1.0)})),
    "an expanded tensor": checkpoint(release(**{FIRST: torch.zeros(1, 1, 1, 1).expand(10**6, 3, 3, 3)})),
    "a sparse tensor": checkpoint(release(**{FIRST: torch.zeros(6, 3, 3, 3).to_sparse()})),
    "a tensor without storage": checkpoint(release(**{FIRST: torch.zeros(6, 3, 3, 3, device="meta")})),
    "a compressed archive": compressed(checkpoint({"state_dict": {"net.a": torch.zeros(10**6)}})),
    "a list": checkpoint([1]),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_hostile_checkpoint_is_one_error_that_names_it(tmp_path: Path, kind: str) -> None:
    (tmp_path / "e.ckpt").write_bytes(CHECKPOINTS[kind])
    with pytest.raises(WeightsError, match=r"e\.ckpt"):
        load_release(tmp_path / "e.ckpt")


def test_a_checkpoint_that_asks_for_memory_is_refused() -> None:
    pickled = b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\xe8vH\x17\x85R."
    data = io.BytesIO(checkpoint({"a": 1}))
    out = io.BytesIO()
    with zipfile.ZipFile(data) as source, zipfile.ZipFile(out, "w") as target:
        for entry in source.infolist():
            target.writestr(
                entry.filename, pickled if entry.filename.endswith("data.pkl") else source.read(entry)
            )
    with pytest.raises(WeightsError, match="more memory"):
        read_checkpoint(out.getvalue())


@given(seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_changed_bytes_of_a_checkpoint_or_a_header_raise_nothing_else(tmp_path_factory, seed: int) -> None:
    random = Random(seed)
    changed = bytearray(SMALL_CHECKPOINT)
    for _ in range(random.choice([1, 1, 3, 20])):
        changed[random.randrange(len(changed))] = random.randrange(256)
    file = tmp_path_factory.mktemp("changed") / "e.ckpt"
    file.write_bytes(changed[: random.choice([len(changed), random.randrange(len(changed))])])
    header = bytearray(GOOD[: 8 + int.from_bytes(GOOD[:8], "little")])
    header[random.randrange(len(header))] = random.randrange(256)
    for read in (lambda: load_release(file), lambda: loads(bytes(header) + GOOD[len(header) :])):
        with suppress(WeightsError):
            assert isinstance(read(), MIRAGE)


SMALL_CHECKPOINT = checkpoint(release())
