"""Job files and overrides of strangers: one clear error, soon, whatever they hold."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config.loader import dump_job, job_from_yaml, load_job
from orchestrator.config.yaml_text import MAX_BYTES, YamlError, read_yaml
from orchestrator.errors import JobFileError
from tests.orchestrator.sweeps.conftest import MakeSweep

LAUGHS = "\n".join(
    ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
)
HOSTILE = {
    "date": "seed: 2020-13-45",
    "empty int": "seed: !!int ''",
    "odd bool": "seed: !!bool x",
    "odd time": "seed: !!timestamp x",
    "odd float": "seed: !!float x",
    "binary": "seed: !!binary x",
    "python": "seed: !!python/object/apply:os.system [false]",
    "own tag": "seed: !x y",
    "set": "data: !!set {a, b}",
    "long int": f"seed: {'9' * 5000}",
    "long hexadecimal": f"seed: 0x{'f' * 5000}",
    "huge float": "train: {learning_rate: 1.0e+99999}",
    "nul": 'storage: "a\\0b"',
    "surrogate": 'name: "\\ud800"',
    "beyond Unicode": 'name: "\\Uffffffff"',
    "nul in extends": 'extends: "\\0"',
    "list in extends": "extends: [a]",
    "long name in extends": f"extends: {'x' * 300}",
    "home of nobody in extends": "extends: ~nosuchuser/x.yaml",
    "laughs": LAUGHS,
    "self": "data: &d {manifests: *d}",
    "self in list": "data: &d [*d]",
    "self as key": "? &k {*k : 1}\n: 1",
    "deep flow": "data: " + "[" * 5000,
    "deep maps": "data: " + "{a: " * 5000,
    "deep blocks": "\n".join(" " * n + f"k{n}:" for n in range(400)),
    "many keys": "\n".join(f"k{n}: 1" for n in range(30_000)),
    "many stages": f"data: {{crop_pixels: [{', '.join(['{pixels: 8}'] * 6000)}]}}",
    "many wrong keys": "\n".join(f"k{n}: 1" for n in range(3000)),
    "long key": f"{'k' * 1000}: 1\n? {'k' * 100_000}\n: 1",
    "list as key": "? [a]\n: 1",
    "merge of a word": "<<: 1",
    "version": f"%YAML 1.{'9' * 5000}\n---\na: 1",
    "two documents": "a: 1\n---\nb: 2",
    "unknown anchor": "a: *b",
    "control sign": "a: \x07",
    "empty": "",
    "too long": "#" * (MAX_BYTES + 1),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_one_short_error_that_names_it(tmp_path: Path, kind: str):
    (tmp_path / "job.yaml").write_text(HOSTILE[kind], encoding="utf-8")
    with pytest.raises(JobFileError) as told:
        load_job(tmp_path / "job.yaml")
    assert "job.yaml" in str(told.value) or "extends" in kind
    assert len(str(told.value)) < 30_000


@pytest.mark.parametrize("kind", [kind for kind, text in HOSTILE.items() if text.startswith("seed: ")])
@pytest.mark.parametrize("key", ["seed", "train.steps", "data.mixture.rain", "a" + ".b" * 2000])
def test_a_hostile_override_is_one_error_that_names_it(kind: str, key: str):
    with pytest.raises(JobFileError, match="--set"):
        load_job("jobs/demo.yaml", [f"{key}={HOSTILE[kind].removeprefix('seed: ')}"])


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"\x80name: x", bytes(range(256))])
def test_bytes_that_are_no_text_are_an_error(tmp_path: Path, data: bytes):
    (tmp_path / "job.yaml").write_bytes(data)
    with pytest.raises(JobFileError, match=r"job\.yaml"):
        load_job(tmp_path / "job.yaml")


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "circle"])
@pytest.mark.parametrize("extended", [False, True])
def test_a_job_file_that_is_no_file_is_an_error_and_never_waits(tmp_path: Path, kind: str, extended: bool):
    odd = tmp_path / "odd.yaml"
    make = {
        "fifo": lambda: os.mkfifo(odd),
        "device": lambda: odd.symlink_to("/dev/zero"),
        "folder": odd.mkdir,
        "circle": lambda: odd.symlink_to(odd),
    }
    make[kind]()
    job = odd
    if extended:
        job = tmp_path / "job.yaml"
        job.write_text("extends: odd.yaml\n")
    with pytest.raises(JobFileError, match=r"odd\.yaml +cannot be read"):
        load_job(job)


@pytest.mark.parametrize("text", ["010", "-010", "1:40", "1:40.5", "0b11", "00", "1_0:00"])
def test_a_number_that_versions_of_yaml_read_differently_is_an_error(text: str):
    with pytest.raises(YamlError, match="decimal digits"):
        read_yaml(f"a: {text}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("0", 0), ("-7", -7), ("1_000", 1000), ("0x1F", 31), ("'010'", "010"), ("~", None)),
        *(
            ("1e3", 1000.0),
            ("2.5e-4", 2.5e-4),
            (".5", 0.5),
            ("1.", 1.0),
            ("1.0e+3", 1000.0),
            ("-.inf", -float("inf")),
        ),
        *(
            ("yes", True),
            ("off", False),
            ("true", True),
            ("2020-01-02", "2020-01-02"),
            ("v1.2", "v1.2"),
            ("", None),
        ),
        *(("!!str 5", "5"), ("{a: &x [1], b: *x}", {"a": [1], "b": [1]})),
        ("{<<: {a: 1, b: 2}, b: 3}", {"a": 1, "b": 3}),
        ("{<<: [{a: 1}, {a: 2, c: 4}]}", {"a": 1, "c": 4}),
    ],
)
def test_plain_values_are_read_as_they_are_meant(text: str, value: object):
    found = read_yaml(f"a: {text}").value["a"]
    assert found == value
    assert type(found) is type(value)


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _numbers() -> Iterator[tuple[str, object]]:
    content = load_job("jobs/demo.yaml").model_dump(mode="json")
    return ((key, value) for key, value in _leaves(content) if isinstance(value, int | float))


@pytest.mark.parametrize(("key", "value"), list(_numbers()))
def test_no_text_and_no_truth_value_counts_as_a_number_and_the_other_way_round(key: str, value: object):
    for other in (
        ("true", f"'{value}'", "yes") if not isinstance(value, bool) else ("1", "'true'", "0", "'on'")
    ):
        with pytest.raises(JobFileError, match=key):
            load_job("jobs/demo.yaml", [f"{key}={other}"])


@pytest.mark.parametrize("key", ["train.steps", "checkpoint.every_steps", "data.crop_pixels"])
def test_a_count_may_have_an_exponent_but_no_fraction(key: str):
    section, name = key.split(".")
    assert repr(getattr(getattr(load_job("jobs/demo.yaml", [f"{key}=6.4e+1"]), section), name)) == "64"
    with pytest.raises(JobFileError, match=key):
        load_job("jobs/demo.yaml", [f"{key}=64.5"])


@pytest.mark.parametrize("path", sorted(Path("jobs").glob("*.yaml")), ids=str)
def test_every_job_is_the_same_after_it_was_stored(path: Path):
    job = load_job(path)
    assert job_from_yaml(dump_job(job)) == job


def test_values_are_those_of_pyyaml_for_every_job_file():
    for path in Path("jobs").glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert read_yaml(text).value == yaml.safe_load(text)


def test_a_sweep_is_the_same_after_it_was_stored(make_sweep: MakeSweep):
    job = make_sweep()
    assert job_from_yaml(dump_job(job)) == job


@pytest.mark.parametrize(
    "text", ["1e5", "010", "1:40", "2020-01-02", "yes", "0x1F", "~", ".inf", "1_000", "null"]
)
def test_text_that_looks_like_something_else_is_stored_as_text(text: str):
    job = load_job("jobs/demo.yaml", [f"track.experiment='{text}'"])
    assert job_from_yaml(dump_job(job)) == job
