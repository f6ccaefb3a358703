"""A job file is either a whole job, or one list of everything that is wrong with it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import get_args

import pytest
import yaml

from orchestrator.config.job_schemas import PackJob
from orchestrator.config.job_types import KINDS, AnyJob
from orchestrator.config.loader import dump_job, job_from_mapping, json_schema, load_job, show_job
from orchestrator.config.schema import Training
from orchestrator.errors import JobFileError

JOBS = sorted(p for p in Path("jobs").rglob("*.yaml") if p.parent.name != "clusters")
MINIMAL = "name: mine\nsetting: 5deg\ndata: {manifests: mine}\ntrack: {experiment: mine}\n"


def write(folder: Path, text: str, name: str = "job.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def problems(path: Path, *overrides: str) -> str:
    with pytest.raises(JobFileError) as caught:
        load_job(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", JOBS, ids=str)
def test_every_shipped_job_is_executable_and_resolves(path: Path) -> None:
    assert path.read_text().splitlines()[0] == "#!/usr/bin/env -S python -m orchestrator run"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o755
    assert load_job(path).name


def test_a_resolved_job_reads_back_as_itself() -> None:
    for path in JOBS:
        job = load_job(path)
        assert job_from_mapping(yaml.safe_load(dump_job(job))) == job


@pytest.mark.parametrize("path", JOBS, ids=str)
def test_a_job_is_shown_with_values_instead_of_null_and_reads_back_as_the_same_training(path: Path) -> None:
    job = load_job(path)
    again = job_from_mapping(yaml.safe_load(show_job(job)))
    if isinstance(job, Training) and isinstance(again, Training):
        assert again.model.build() == job.model.build()
        again = again.model_copy(update={"model": job.model})
    assert again == job
    assert "null" not in show_job(job)


def test_a_shown_job_keeps_null_where_it_is_an_argument_of_a_network() -> None:
    model = 'model={class: "a:B", arguments: {norm: null, layers: [{width: null}]}}'
    job = load_job("jobs/5deg.yaml", [model, "loss.spd_weight=0"])
    assert yaml.safe_load(show_job(job))["model"]["arguments"] == {"norm": None, "layers": [{"width": None}]}


def test_a_shown_job_has_the_sizes_of_its_model() -> None:
    shown = yaml.safe_load(show_job(load_job("jobs/5deg.yaml")))
    assert shown["model"]["blocks"] == [3, 5, 5, 7]
    assert shown["model"]["refinement_blocks"] == 2
    assert "steps" not in shown["train"]


def test_a_shown_key_that_was_emptied_stays_null() -> None:
    job = load_job("jobs/demo.yaml", ["train.ema_decay=null"])
    shown = yaml.safe_load(show_job(job))
    assert shown["train"]["ema_decay"] is None
    again = job_from_mapping(shown)
    assert isinstance(again, Training)
    assert again.train.ema_decay is None


def test_release_and_paper_recipes_differ_where_the_sources_do() -> None:
    release = load_job("jobs/5deg.yaml")
    paper = load_job("jobs/5deg.yaml", ["recipe=paper"])
    assert (release.train.optimizer, release.loss.spd_weight, release.train.epochs) == ("adamw", 0.01, 150)
    assert (paper.train.optimizer, paper.loss.spd_weight, paper.train.epochs) == ("adam", 0.05, 130)
    assert (release.model.shallow_tap, paper.model.shallow_tap) == ("encoder1", "patch_embed")
    assert (release.data.augmentation, paper.data.augmentation) == ("release", "paper")


def test_every_problem_is_reported_at_once_with_its_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        MINIMAL + "loss:\n  spd_wieght: 0.1\ntrain:\n  global_batch_size: many\nmodel: {variant: tny}\n",
    )
    message = problems(path)
    assert f"{path}:6" in message
    assert 'Did you mean "spd_weight"?' in message
    assert f"{path}:8" in message
    assert "train.global_batch_size" in message
    assert f"{path}:9" in message
    assert 'Did you mean "tiny"?' in message
    assert message.endswith("3 problems. Nothing was started.")


def test_impossible_combinations_name_the_nearest_possible(tmp_path: Path) -> None:
    message = problems(write(tmp_path, MINIMAL + "workers: {min: 1, max: 64}\n"), "data.crop_pixels=100")
    assert "--set data.crop_pixels=100" in message
    assert "Nearest: 96 or 104" in message
    assert "64 workers cannot share a micro-batch of 32" in message


def test_a_key_that_nobody_knows_hides_no_impossible_combination(tmp_path: Path) -> None:
    message = problems(write(tmp_path, MINIMAL + "loss: {spd_wieght: 0.1}\n"), "data.crop_pixels=100")
    assert 'Did you mean "spd_weight"?' in message
    assert "Nearest: 96 or 104" in message
    assert message.endswith("2 problems. Nothing was started.")


def test_a_wrong_setting_is_one_problem_and_not_its_consequences(tmp_path: Path) -> None:
    message = problems(write(tmp_path, MINIMAL.replace("5deg", "5dge")))
    assert "1 problem." in message
    assert "setting" in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: [unclosed\n", "not valid YAML"),
        ("- a list\n", "must be a mapping of keys"),
        (MINIMAL + "name: twice\n", "is given twice"),
        (MINIMAL + "data:\n  manifests: x\n", "is given twice"),
    ],
)
def test_a_file_that_is_no_job_says_so(tmp_path: Path, text: str, says: str) -> None:
    assert says in problems(write(tmp_path, text))


def test_a_missing_file_suggests_its_neighbour() -> None:
    assert "jobs/demo.yaml" in problems(Path("jobs/dmo.yaml"))


def test_extends_goes_one_level_and_the_file_wins(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL + "seed: 1\ntrain: {global_batch_size: 8}\n", "base.yaml")
    job = load_job(write(tmp_path, "extends: base.yaml\nname: child\nseed: 2\n"), ["seed=3"])
    assert (job.name, job.seed, job.train.global_batch_size) == ("child", 3, 8)
    grandchild = write(tmp_path, "extends: job.yaml\nname: grandchild\n", "grandchild.yaml")
    assert "cannot extend another one" in problems(grandchild)


def test_an_override_that_is_no_assignment_is_refused(tmp_path: Path) -> None:
    assert "is not key=value" in problems(write(tmp_path, MINIMAL), "train.steps")


def test_a_mixture_is_replaced_as_a_whole(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, MINIMAL), ["data.mixture={rain: 2}"])
    assert job.data.mixture == {"rain": 2}


def test_one_repeat_of_a_mixture_is_changed_by_a_dotted_override(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, MINIMAL), ["data.mixture.rain=7"])
    assert job.data.mixture["rain"] == 7
    assert job.data.mixture["haze"] == 1


def test_a_child_drops_a_degradation_of_its_parent(tmp_path: Path) -> None:
    write(
        tmp_path,
        MINIMAL.replace("{manifests: mine}", "{manifests: mine, mixture: {rain: 1, haze: 1}}"),
        "base.yaml",
    )
    job = load_job(write(tmp_path, "extends: base.yaml\ndata: {mixture: {rain: 2}}\n"))
    assert job.data.mixture == {"rain": 2}


@pytest.mark.parametrize("override", ["train.ema_decay=null", "train.clip_norm=null"])
def test_a_key_that_was_emptied_stays_empty_on_the_way_to_the_workers(override: str) -> None:
    job = load_job("jobs/demo.yaml", [override])
    assert job_from_mapping(yaml.safe_load(dump_job(job))) == job


@pytest.mark.parametrize("override", ["setting=[5deg]", "recipe=[fast]", "seed=-1", "track.register_as=a/b"])
def test_odd_values_are_problems_and_no_tracebacks(override: str) -> None:
    assert "1 problem." in problems(Path("jobs/demo.yaml"), override)


def test_a_row_that_the_papers_tables_do_not_hold_is_a_problem() -> None:
    assert load_job("jobs/demo.yaml", ["promote.paper_row=T2:MIRAGE-S"]).promote.paper_row == "T2:MIRAGE-S"
    message = problems(Path("jobs/demo.yaml"), "promote.paper_row=T2:MIRAGE-XL")
    assert "promote.paper_row" in message
    assert "no such row" in message
    assert "MIRAGE-S" in message


CLASS = 'model={class: "a:B", arguments: {width: 3}}'


def test_a_class_takes_the_place_of_a_mirage_with_its_sizes_and_its_term(tmp_path: Path) -> None:
    base = MINIMAL + "model: {dim: 24, batch_norm: local}\nloss: {l1_weight: 2, spd_weight: 0.05}\n"
    write(tmp_path, base, "base.yaml")
    child = write(tmp_path, 'extends: base.yaml\nmodel: {class: "a:B", arguments: {width: 3}}\n')
    for job in (load_job(child), load_job(tmp_path / "base.yaml", [CLASS])):
        assert (job.model.class_, job.model.arguments, job.model.changes().get("dim")) == (
            "a:B",
            {"width": 3},
            None,
        )
        assert (job.loss.l1_weight, job.loss.spd_weight) == (2, 0)
    assert load_job(child).model.batch_norm == "local"


@pytest.mark.parametrize("override", ["model.dim=24", "loss.spd_weight=0.05"])
def test_a_key_of_a_mirage_beside_a_class_is_still_a_problem(tmp_path: Path, override: str) -> None:
    assert override.partition("=")[0] in problems(write(tmp_path, MINIMAL), "model.class=a:B", override)


def test_a_model_that_set_gives_with_another_class_has_nothing_of_the_one_before(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + 'model: {class: "a:A", path: here, stride: 16, arguments: {depth: 1}}\n')
    other = load_job(path, [CLASS]).model
    assert (other.path, other.stride, other.arguments) == (None, 8, {"width": 3})
    same = load_job(path, ['model={class: "a:A", arguments: {width: 3}}']).model
    assert (same.path, same.stride, same.arguments) == ("here", 16, {"depth": 1, "width": 3})
    by_dot = load_job(path, ["model.class=a:B", "model.arguments.width=3"]).model
    assert (by_dot.path, by_dot.stride, by_dot.arguments) == ("here", 16, {"depth": 1, "width": 3})


PACK = "name: mine\nkind: pack\ndata: {manifests: mine, pack: {source: photographs}}\n"


def test_keys_of_another_kind_are_problems_that_say_whose_they_are(tmp_path: Path) -> None:
    path = write(tmp_path, PACK + "train:\n  steps: 3\nseeed: 1\n")
    message = problems(path, "data.crop_pixels=64", "data.pack.varaints=2")
    assert f"{path}:4" in message
    assert "is a key of jobs of kind train or sweep; this job is of kind pack" in message
    assert "--set data.crop_pixels=64" in message
    assert 'Did you mean "variants"?' in message
    assert f"{path}:6" in message
    assert message.endswith("4 problems. Nothing was started.")


def test_an_unknown_kind_suggests_a_known_one(tmp_path: Path) -> None:
    message = problems(write(tmp_path, PACK.replace("kind: pack", "kind: pak")))
    assert 'Did you mean "pack"?' in message
    assert "job.yaml:2" in message
    assert "is ['pack']" in problems(write(tmp_path, PACK.replace("kind: pack", "kind: [pack]")))


def test_a_pack_job_must_say_what_to_pack(tmp_path: Path) -> None:
    assert "data.pack" in problems(write(tmp_path, "name: mine\nkind: pack\ndata: {manifests: mine}\n"))
    message = problems(write(tmp_path, PACK.replace("photographs", "synthetic")), "data.manifests=[a, b]")
    assert "name the folder of clean photographs" in message
    assert "exactly one dataset" in message


def test_a_kind_can_be_inherited(tmp_path: Path) -> None:
    write(tmp_path, PACK, "base.yaml")
    job = load_job(write(tmp_path, "extends: base.yaml\nname: child\n"))
    assert isinstance(job, PackJob)
    assert job_from_mapping(yaml.safe_load(dump_job(job))) == job


def test_every_kind_has_a_schema_and_a_place_in_the_union() -> None:
    assert {kind.model for kind in KINDS.values()} == set(get_args(AnyJob))
    schema = json_schema()
    assert set(schema["discriminator"]["mapping"]) == set(KINDS)


def test_the_schema_describes_every_section() -> None:
    schema = json_schema()
    for kind in KINDS.values():
        assert set(kind.model.model_fields) <= set(schema["$defs"][kind.model.__name__]["properties"])
    for name, section in schema["$defs"].items():
        for key, value in section.get("properties", {}).items():
            assert "description" in value or "$ref" in value, f"{name}.{key} has no meaning"
    assert schema["$defs"]["Job"]["required"] == ["name", "setting", "data", "track"]
    assert "kind" in schema["$defs"]["PackJob"]["required"]


def test_one_number_in_place_of_a_list_is_told_what_the_list_is() -> None:
    told = problems(Path("jobs/demo.yaml"), "model.heads=1")
    assert (
        "model.heads  is 1: write a list, [..., ...]. Number of attention heads at each of the four" in told
    )
