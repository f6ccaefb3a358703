"""One reader of JSON records: a schema, a bound of size and depth, one error. And one list of image formats."""

import ast
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import records
from orchestrator.errors import EvaluationError
from orchestrator.evaluation.chunks import read_results, results_key
from orchestrator.evaluation.summary import read_summary
from orchestrator.planning.throughput import earlier_runs, store_throughput
from orchestrator.records import RecordError, read_record
from orchestrator.sweeps.event_log import read_events
from shards.store import LocalStore, Store, checked
from tests.shards.test_checked import DAMAGES, Wire


@pytest.fixture(autouse=True, scope="module")
def no_pause() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checked, "_FIRST_PAUSE_SECONDS", 0.0)
        yield


@dataclass(frozen=True)
class Record:
    number: int
    names: tuple[str, ...] = ()


def test_a_record_of_the_schema_is_read_and_unknown_fields_are_ignored():
    assert read_record(Record, b'{"number": 1, "names": ["a"], "newer": []}') == Record(1, ("a",))


@given(names=st.lists(st.binary(max_size=8).map(os.fsdecode)))
def test_names_that_are_no_utf8_are_read_as_they_were_written(names: list[str]):
    written = json.dumps({"number": 1, "names": names})
    for data in (written, written.encode()):
        assert read_record(Record, data, names=True) == Record(1, tuple(names))
    nested = {"a": dict.fromkeys(names, 1)}
    assert read_record(dict[str, dict[str, int]], json.dumps(nested), names=True) == nested


def test_text_that_cannot_be_encoded_is_refused_where_no_names_are_expected():
    with pytest.raises(RecordError):
        read_record(Record, '{"number": 1, "names": ["\\udc80"]}')


@pytest.mark.parametrize("text", ["💀", "\\udc80", "a\\\\udc80", "\U0010dc80 💀 é", "\\"])
def test_text_that_looks_like_such_a_name_stays_as_it_is(text: str):
    for data in (json.dumps([text]), json.dumps([text], ensure_ascii=False)):
        assert read_record(list[str], data, names=True) == [text]


BROKEN = [
    *(b"", b"\xff", b"null", b"[]", b"{}", b'{"number": "1"}', b'{"number": true}', b'{"number": 1.5}'),
    *(b'{"number": 1, "names": "a"}', b'{"number": 1, "names": [1]}', b'{"number": ' + b"9" * 5000 + b"}"),
    *(b'{"number": 1} x', b"[" * 100_000, b'{"number":' * 100_000, b'{"number": 1, "names": ["\\ud800"]}'),
]


@pytest.mark.parametrize("data", BROKEN)
def test_bytes_of_another_shape_are_one_error(data: bytes):
    with pytest.raises(RecordError):
        read_record(Record, data)


@given(data=st.binary(max_size=60))
def test_any_bytes_are_read_or_one_error(data: bytes):
    with pytest.raises(RecordError):
        read_record(Record, data + b"\0")


def test_a_record_above_the_bound_is_not_parsed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records, "MAX_BYTES", 20)
    with pytest.raises(RecordError, match="more than 20 bytes"):
        read_record(Record, b'{"number": 1}' + b" " * 20)


READERS: dict[str, tuple[str, object, Callable[[Store], object]]] = {
    "an event of a sweep": ("events/000000.json", {"kind": "exhausted", "reason": "all"}, read_events),
    "results of a chunk": (results_key(0), [], lambda store: read_results(store, 0)),
}


@pytest.mark.parametrize("damage", ["a lost end", "nothing", "a web page"])
@pytest.mark.parametrize("reader", READERS)
def test_one_damaged_answer_is_read_again(tmp_path: Path, reader: str, damage: str):
    key, content, read = READERS[reader]
    LocalStore(tmp_path).write(key, json.dumps(content).encode())
    assert read(Wire(tmp_path, DAMAGES[damage], 1)) == read(LocalStore(tmp_path))


def test_a_timing_that_arrives_damaged_once_is_read_again(small_job, monkeypatch: pytest.MonkeyPatch):
    job = small_job()
    pace = {"seconds_per_step": 0.5, "steps": 9, "workers": 1, "device": "CPU", "load_per_core": 0.5}
    store_throughput(job, "run", pace)
    wire = Wire(Path(job.storage) / "timings", DAMAGES["a lost end"], 1)
    monkeypatch.setattr("orchestrator.planning.throughput._timings", lambda _: wire)
    assert len(earlier_runs(job)) == 1
    assert wire.damaged < 0


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"[{}]", b"\xff", b"[" * 50_000])
def test_results_of_an_evaluation_that_are_damaged_are_named(tmp_path: Path, data: bytes):
    store = LocalStore(tmp_path)
    store.write(results_key(0), data)
    (tmp_path / "summary.json").write_bytes(data)
    with pytest.raises(EvaluationError, match="is damaged"):
        read_results(store, 0)
    with pytest.raises(EvaluationError, match="not the summary of an evaluation"):
        read_summary(tmp_path)


def _calls(tree: ast.AST, name: str) -> list[ast.Call]:
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    return [
        call
        for call in calls
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func).endswith(name)
    ]


def test_pillow_opens_listed_formats_only_everywhere():
    found = 0
    for package in ("shards", "orchestrator", "mirage"):
        for path in Path(package).rglob("*.py"):
            for call in _calls(ast.parse(path.read_text()), "Image.open"):
                found += 1
                assert "formats" in {keyword.arg for keyword in call.keywords}, f"{path}:{call.lineno}"
    assert found >= 4


def test_no_text_of_yaml_is_read_but_by_the_one_reader():
    for path in Path("orchestrator").rglob("*.py"):
        if path.name != "yaml_text.py":
            for name in ("yaml.load", "yaml.safe_load", "yaml.compose"):
                calls = _calls(ast.parse(path.read_text()), name)
                assert not calls or path.name == "submit_hook.py", path
