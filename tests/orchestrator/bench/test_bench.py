import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from orchestrator.bench import environment, external_repos, timing
from orchestrator.bench.__main__ import main, parser
from orchestrator.bench.errors import BenchError

ROOT = Path(__file__).parents[3]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", "bench", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_ratios_are_medians_of_pairs_not_ratios_of_medians() -> None:
    # A machine that slows down threefold in mid-run; the subject always takes half of the reference's time.
    found = timing.ratio([1.0, 3.0, 3.0, 1.0], [0.5, 1.5, 1.5, 0.5])
    assert (found.median, found.low, found.high) == (2.0, 2.0, 2.0)
    assert timing.ratio([2.0], [1.0]).median == 2.0


def test_runs_take_turns_after_one_that_is_not_measured() -> None:
    calls: list[str] = []
    times = timing.interleaved(
        {name: lambda name=name: calls.append(name) for name in "ab"}, 2, lambda run: run() or 1.0
    )
    assert calls == ["a", "b"] * 3
    assert times == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


def test_ours_alone_is_measured_and_written_down(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = bench("model", "--crop", "32", "--batch", "1", "--repeats", "2", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "6,207,412" in done.stdout
    record = json.loads(file.read_text())
    [row] = record["rows"]
    assert row["parameters"] == 6_207_412
    assert row["gmacs"] == pytest.approx(16.25, abs=0.005)
    assert row["infer_ratio"] == row["train_ratio"] == [1, 1, 1]
    assert 0 < row["infer_s"] < row["train_s"]
    assert row["kept_mib"] == pytest.approx(159 / 16, abs=4)  # and what does not grow with the image
    assert str(tmp_path) not in file.read_text()
    assert record["command"].startswith("mirage bench model --size tiny")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "--release", "nowhere"], "git clone https://github.com/Amazingren/MIRAGE"),
        (["model", "--peer", "SwinIR=here"], "one of PromptIR, MoCE-IR"),
        (["model", "--peer", "AdaIR=nowhere"], "no net/model.py"),
        (["model", "--peer", "mine.net:Net=nowhere"], "no mine/net.py"),
        (["train-parity", "--release", "nowhere"], "no net/mirage_tiny.py"),
        (["model", "--json", "no/such/folder.json"], "folder does not exist"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_runs(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_network_of_the_users_own_is_measured_beside_mirage(tmp_path: Path) -> None:
    (tmp_path / "own_peer.py").write_text(
        "from torch import nn\n\nclass Net(nn.Module):\n    def __init__(self, width=4):\n        super().__init__()\n"
        "        self.layer = nn.Conv2d(3, 3, 3, padding=1)\n\n    def forward(self, x):\n"
        "        return self.layer(x), x\n"
    )
    file = tmp_path / "model.json"
    words = ["model", "--peer", f"own_peer:Net={tmp_path}", "--crop", "16", "--batch", "1", "--repeats", "1"]
    assert main([*words, "--json", str(file)]) == 0
    ours, peer = json.loads(file.read_text())["rows"]
    assert (ours["name"], peer["name"], peer["parameters"]) == ("ours tiny", "own_peer:Net", 84)
    assert peer["gmacs"] == pytest.approx(81 * 224**2 / 1e9)
    assert peer["infer_s"] > 0
    assert peer["train_s"] > 0
    assert str(tmp_path) not in file.read_text()
    assert main(["model", "--peer", f"own_peer:Missing={tmp_path}"]) == 2


def test_help_comes_from_the_one_list_of_options() -> None:
    done = bench("model", "--help")
    assert done.returncode == 0
    assert "--peer NAME=PATH" in done.stdout
    assert bench("model", "--crop", "20").returncode == 2


def test_paths_of_this_machine_stay_out_of_the_record() -> None:
    options = parser().parse_args(["model", "--release", "/some/where", "--peer", "AdaIR=/else/where"])
    line = environment.command(options)
    assert "--release PATH" in line
    assert "--peer AdaIR=PATH" in line
    assert "where" not in line


def repository(root: Path, shift: float) -> Path:
    """A stand-in for a checkout, with an import that is not installed."""
    (root / "net").mkdir(parents=True)
    (root / "net" / "part.py").write_text(f"SHIFT = {shift}")
    (root / "net" / "model.py").write_text(
        textwrap.dedent(
            """
            from timm.models.layers import DropPath, trunc_normal_
            from thop import profile
            from net.part import SHIFT
            """
        )
    )
    return root


def test_two_checkouts_with_equal_module_names_do_not_mix(tmp_path: Path) -> None:
    one, two = (repository(tmp_path / name, shift) for name, shift in (("one", 1.0), ("two", 2.0)))
    before = (list(sys.path), set(sys.modules), list(sys.meta_path))
    first, second = external_repos.load(one, "net.model"), external_repos.load(two, "net.model")
    assert (first.SHIFT, second.SHIFT) == (1.0, 2.0)
    assert first.DropPath(0.1)(3) == 3
    assert (list(sys.path), set(sys.modules), list(sys.meta_path)) == before
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_missing_package_that_is_needed_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import no_such_package_at_all")
    with pytest.raises(BenchError, match="no_such_package_at_all"):
        external_repos.load(tmp_path, "net")
