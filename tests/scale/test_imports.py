"""Commands that build no model import nothing heavy: each takes the time that Python and pydantic take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.bench.scale import synthetic_manifest
from shards.manifest import publish
from shards.store import LocalStore

HEAVY = {
    *("torch", "optuna", "mlflow", "ray", "pandas", "matplotlib", "scipy", "safetensors", "triton"),
    *("boto3", "s3transfer", "pyarrow", "webdataset"),
}
PACK = "{name: mine, kind: pack, data: {manifests: packed, pack: {source: synthetic, root: photographs}}}"
PROGRAM = """
import sys
from orchestrator.cli import main
try:
    main()
finally:
    print("imported:", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""
JOBS = {"train": "jobs/demo.yaml", "sweep": "jobs/sweeps/demo.yaml"}


def imported_by(*arguments: str) -> set[str]:
    """Return the packages that a command of `mirage` imports."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return set(ended.stderr.rpartition("imported: ")[2].split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["schema"],
        ["plan", JOBS["train"], "--resolved"],
        ["plan", JOBS["train"]],
        ["plan", JOBS["train"], "--shapes"],
        ["plan", JOBS["sweep"]],
    ],
    ids=" ".join,
)
def test_a_command_that_builds_no_model_imports_nothing_heavy(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MIRAGE_STORE_RETRY_MINUTES", "0.001")
    assert imported_by(*arguments) & HEAVY == set()


def test_opening_a_dataset_imports_no_pandas(tmp_path: Path):
    """pyarrow imports it in several of its conversions, which costs more than the tables of a million samples."""
    publish(LocalStore(tmp_path), synthetic_manifest(1000))
    program = (
        "import sys; from shards.cache import ShardCache; from shards.dataset import Dataset; "
        "Dataset([sys.argv[1]], ShardCache(sys.argv[1], 1 << 30)); "
        "print(*{'pandas', 'pyarrow.compute', 'pyarrow'} & sys.modules.keys())"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert ended.stdout.split() == ["pyarrow"], ended.stderr
