"""`mirage analyse` leaves numbers and printable figures, and logs them to the run that it is given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs

from mirage import MIRAGE, ModelConfig, save
from orchestrator.errors import OrchestratorError
from orchestrator.evaluation.feature_analysis import analyse
from orchestrator.run_files import RUN_TAG
from orchestrator.tracking import runs
from orchestrator.tracking.client import connect
from orchestrator.tracking.uri import resolve_tracking_uri

SMALL = {"dim": 6, "blocks": (1, 1, 1, 1), "refinement_blocks": 0, "heads": (1, 1, 1, 1)}


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = []
    for name in ("astronaut", "coffee", "rocket"):
        paths.append(tmp_path / f"{name}.png")
        Image.fromarray(np.ascontiguousarray(getattr(photographs, name)()[:72, :96])).save(paths[-1])
    return paths


def weights(folder: Path, name: str, **changes: object) -> str:
    torch.manual_seed(0)
    path = folder / f"{name}.safetensors"
    save(MIRAGE(ModelConfig(**{**SMALL, **changes})), path)  # type: ignore[arg-type]
    return str(path)


def test_two_models_and_two_degradations_are_set_side_by_side(
    at_home: Path, tmp_path: Path, images: list[Path]
) -> None:
    ours = weights(tmp_path, "ours")
    without = weights(tmp_path, "without", alignment="none", branch_ratios=(1, 0, 0))
    out = tmp_path / "out"
    progress: list[int] = []
    told = list(
        analyse(
            [ours, without],
            images,
            ["rain", "noise25"],
            64,
            out,
            None,
            lambda done, *_: progress.append(done),
        )
    )
    assert progress == [0, 1, 2, 3, 4]
    found = json.loads((out / "analysis.json").read_text())
    assert [(f["model"], f["degradation"]) for f in found] == [
        (m, d) for m in (ours, without) for d in ("rain", "noise25")
    ]
    for one in found:
        assert [s["channels"] for s in one["scales"]] == [6, 12, 24, 48, 24]
        assert all(
            s["rank_ratio"] == pytest.approx(s["components_90"] / s["channels"]) for s in one["scales"]
        )
        assert all(s["cumulative_variance"][-1] == pytest.approx(1) for s in one["scales"])
    assert set(found[0]["contrast"]) == {"shallow_latent", "euclidean", "spd"}
    assert set(found[2]["contrast"]) == {"euclidean", "spd"}  # no contrastive learning, no heads
    assert [s["channels"] for s in found[2]["attention"]] == [
        6,
        12,
        24,
        48,
    ]  # attention alone has all channels
    assert any("ratio" in line for line in told)
    for name in ("figure3-variance", "figure4-channels", "figure5-alignment", "figure6-descriptors"):
        assert (out / f"{name}.pdf").stat().st_size > 5000
        with Image.open(out / f"{name}.png") as figure:
            assert figure.info["dpi"][0] == pytest.approx(200, abs=1)


def test_numbers_and_figures_go_to_the_run_that_is_named(
    at_home: Path, tmp_path: Path, images: list[Path]
) -> None:
    uri = resolve_tracking_uri()
    run = runs.start_run(uri, "analysed", "some-run", {RUN_TAG: "some-run"}, {})
    list(analyse([weights(tmp_path, "ours")], images[:1], [], 64, tmp_path / "out", "some-run"))
    client = connect(uri)
    assert {"analysis/analysis.json", "analysis/figure4-channels.png"} <= {
        artifact.path for artifact in client.list_artifacts(run, "analysis")
    }
    assert client.get_run(run).data.metrics["analysis/as_given/latent/rank_ratio"] > 0
    assert not (tmp_path / "out" / "figure5-alignment.png").exists()  # one image has no others


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"degradations": ["hail"]}, "--degradation hail: one of"),
        ({"run": "nobody"}, "no run of that name or id"),
        ({"models": ["nothing.safetensors"]}, "no such file"),
        ({"images": [Path("nothing.png")]}, "cannot be read"),
    ],
)
def test_what_cannot_be_analysed_is_one_clear_error(
    at_home: Path, tmp_path: Path, images: list[Path], change: dict[str, object], says: str
) -> None:
    arguments = {
        "models": [weights(tmp_path, "ours")],
        "images": images,
        "degradations": [],
        "run": None,
        **change,
    }
    with pytest.raises(OrchestratorError, match=says):
        list(analyse(**arguments, crop=64, out=tmp_path / "out"))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
