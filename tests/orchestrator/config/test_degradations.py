"""The section `degradations` of a job: what it may say, where a problem is, and whose identity it changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator.config.identity import run_id
from orchestrator.config.loader import dump_job, job_from_mapping, json_schema, load_job, show_job
from orchestrator.config.pipelines import pipelines_of
from orchestrator.config.search_space import candidate
from orchestrator.errors import JobFileError
from tests.tiny_operators import PIPELINES

pytestmark = pytest.mark.usefixtures("tiny_operators")

JOB = """\
name: blind
setting: own
data:
  manifests: photographs
  mixture: {phone-night: 2, noise15: 1}
evaluate: {degradations: [phone-night, noise35]}
train: {steps: 10, schedule: cosine}
track: {experiment: blind}
degradations:
  noise35:
    - tiny_noise: {sigma: 35}
  phone-night:
    - shuffle:
        - tiny_gain: {gain: {choice: [0.5, 1.5]}}
        - tiny_noise:
            sigma: {range: [1, 30]}
    - use: noise35
"""


def write(folder: Path, text: str = JOB) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(JobFileError) as caught:
        load_job(path, overrides)
    return str(caught.value).splitlines()


def test_a_job_with_pipelines_is_read_and_reads_back_as_itself(tmp_path: Path) -> None:
    job = load_job(write(tmp_path))
    assert list(pipelines_of(job)) == ["noise35", "phone-night"]
    assert job_from_mapping(yaml.safe_load(dump_job(job))) == job
    assert job_from_mapping(yaml.safe_load(show_job(job))).degradations == job.degradations
    assert load_job(write(tmp_path), ["checkpoint.metric=val/own/phone-night/ssim"]).checkpoint.metric


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "message"),
    [
        (
            "tiny_noise: {sigma: 35}",
            "tiny_nose: {sigma: 35}",
            11,
            "degradations.noise35.0.tiny_nose",
            '"tiny_noise"',
        ),
        (
            "{sigma: 35}",
            "{sigma: 350}",
            11,
            "degradations.noise35.0.tiny_noise.sigma",
            "from 0 to 100 grey levels",
        ),
        (
            "[1, 30]",
            "[30, 1]",
            16,
            "degradations.phone-night.0.shuffle.1.tiny_noise.sigma",
            "larger than the second",
        ),
        (
            "[1, 30]",
            "[1, .nan]",
            16,
            "degradations.phone-night.0.shuffle.1.tiny_noise.sigma",
            "is nan: must be a number from 0 to 100",
        ),
        ("use: noise35", "use: phone-night", 17, "degradations.phone-night.1.use", "refers to itself"),
        ("use: noise35", "use: noise3", 17, "degradations.phone-night.1.use", 'Did you mean "noise35"?'),
        ("  noise35:", "  haze:", 10, "degradations.haze", "published"),
        ("  noise35:", "  phone-night:", 12, "degradations.phone-night", "given twice; first at"),
        ("{phone-night: 2, noise15: 1}", "{phone-nigt: 2}", 5, "data.mixture", '"phone-night"'),
    ],
)
def test_a_problem_has_its_line(
    tmp_path: Path, old: str, new: str, line: int, key: str, message: str
) -> None:
    path = write(tmp_path, JOB.replace(old, new, 1))
    packs = ["data.pack.source=synthetic", "data.pack.root=."]  # so that every name must be known
    first = next(each for each in problems(path, *packs) if message in each)
    assert first.startswith(f"{path}:{line} ")
    assert key in first.split()[1]


def test_a_circle_is_told_at_the_line_where_it_begins(tmp_path: Path) -> None:
    path = write(tmp_path, JOB.replace("- tiny_noise: {sigma: 35}", "- use: phone-night"))
    (told, _) = problems(path)
    assert told.split()[:2] == [f"{path}:11", "degradations.noise35.0.use"]
    assert "noise35 → phone-night → noise35" in told


def test_a_margin_without_pipelines_is_told_and_changes_the_identity_with_them(tmp_path: Path) -> None:
    path = write(tmp_path)
    plain, same, wide = (load_job(path, [f"data.margin_pixels={n}"] if n else []) for n in (None, 0, 8))
    assert run_id(plain, ["m"]) == run_id(same, ["m"]) != run_id(wide, ["m"])
    without = JOB.partition("degradations:\n")[0].replace("phone-night", "rain").replace(", noise35", "")
    told = problems(write(tmp_path, without), "data.margin_pixels=8")
    assert any("data.margin_pixels" in line and "no section degradations" in line for line in told)


def test_a_misspelt_parameter_is_one_problem(tmp_path: Path) -> None:
    (told, _) = problems(write(tmp_path, JOB.replace("{sigma: 35}", "{sigm: 35}")))
    assert 'Did you mean "sigma"?' in told
    missing = problems(write(tmp_path, JOB.replace("{sigma: 35}", "{xyz: 35}")))
    assert len(missing) == 3  # the two and their number


def test_a_name_that_is_none_is_told_without_the_words_of_a_library(tmp_path: Path) -> None:
    (told, _) = problems(write(tmp_path, JOB.replace("{phone-night: 2", "{Phone-Night: 2")))
    assert "is 'Phone-Night': neither a known degradation nor an own name; use 1 to 32 small letters" in told


def test_set_changes_one_value_of_a_step_or_replaces_it(tmp_path: Path) -> None:
    path, at = write(tmp_path), "degradations.phone-night.0.shuffle"
    steps = load_job(
        path, [f"{at}.1.tiny_noise.sigma=7", f"{at}.0.tiny_gain.gain={{range: [1, 2]}}"]
    ).degradations
    assert steps["phone-night"][0]["shuffle"] == [
        {"tiny_gain": {"gain": {"range": [1, 2]}}},
        {"tiny_noise": {"sigma": 7}},
    ]
    assert load_job(path, [f"{at}.0={{tiny_shrink: }}"]).degradations["phone-night"][0]["shuffle"][0] == {
        "tiny_shrink": None
    }
    (told, _) = problems(path, f"{at}.1.tiny_noise.sigma=777")
    assert told.startswith(f"--set {at}.1.tiny_noise.sigma=777 ")
    assert "a list of steps" in problems(path, f"{at}.7.tiny_noise.sigma=3")[0]


def test_an_empty_mapping_does_not_stand_for_a_list(tmp_path: Path) -> None:
    path = write(tmp_path, JOB.replace("manifests: photographs", "manifests: [photographs]"))
    assert any("data.manifests  is {}" in each for each in problems(path, "data.manifests={}"))


def test_a_file_that_extends_another_one_replaces_whole_pipelines(tmp_path: Path) -> None:
    write(tmp_path)
    child = tmp_path / "child.yaml"
    child.write_text("extends: job.yaml\ndegradations:\n  noise35: [tiny_noise: {sigma: 34}]\n")
    changed = load_job(child).degradations
    assert changed["noise35"] == [{"tiny_noise": {"sigma": 34}}]
    assert len(changed["phone-night"]) == 2


def test_pairs_and_a_pipeline_of_one_name_are_refused(tmp_path: Path) -> None:
    pairs = "source: pairs, root: ., degraded: 'a/{key}.png', clean: 'b/{key}.png', degradation: noise35"
    path = write(tmp_path, JOB.replace("  manifests", f"  pack: {{{pairs}}}\n  manifests"))
    assert any("also the name of the packed pairs" in line for line in problems(path))


def test_pipelines_are_part_of_the_identity_by_what_they_do(tmp_path: Path) -> None:
    def identity(*overrides: str) -> str:
        return run_id(load_job(write(tmp_path), overrides), ["digest"])

    assert identity("degradations.noise35=[tiny_noise: {sigma: 35.0}]") == identity()
    others = {
        identity(),
        identity("degradations.noise35.0.tiny_noise.sigma=36"),
        identity("degradations.phone-night.0.shuffle.1.tiny_noise.sigma={log_range: [1, 30]}"),
        identity("degradations.other=[tiny_shrink]"),
    }
    assert len(others) == 4


def test_a_job_without_pipelines_keeps_the_identity_it_had() -> None:
    assert run_id(load_job("jobs/5deg.yaml"), ["digest"]) == "5deg-e6dd9704cc"


def test_a_run_that_packed_its_data_before_jpeg_files_were_cut_keeps_its_id():
    before = run_id(load_job("jobs/finetune.yaml", ["data.pack.jpeg=keep"]), ["digest"])
    assert run_id(load_job("jobs/finetune.yaml"), ["digest"]) == before == "finetune-2ffd42d90b"
    assert run_id(load_job("jobs/finetune.yaml", ["data.pack.jpeg=tile"]), ["digest"]) != before


SWEEP = """
kind: sweep
sweep:
  space:
    degradations.phone-night.0.shuffle.1.tiny_noise.sigma: {choice: [5, 50]}
    degradations.noise35.0.tiny_noise.sigma: {range: [20, 40]}
  trials: 2
  winner: {then: none}
validation: {every_steps: 5}
"""


MEASURED = ["evaluate.degradations=[noise15]"]
"""What trials are measured on: no pipeline that the sweep changes."""


def test_a_sweep_searches_parameters_of_a_pipeline(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, JOB + SWEEP), MEASURED)
    first, second = list(job.sweep.space)
    made = candidate(job, {first: 50, second: 21.5}).job
    assert made is not None
    assert made.degradations["phone-night"][0]["shuffle"][1] == {"tiny_noise": {"sigma": 50}}
    assert made.degradations["noise35"] == [{"tiny_noise": {"sigma": 21.5}}]
    assert job.degradations["noise35"] == [{"tiny_noise": {"sigma": 35}}], "the sweep's own job stays"


@pytest.mark.parametrize("measured", ["phone-night", "noise35"])
def test_a_sweep_does_not_change_what_trials_are_measured_on(tmp_path: Path, measured: str) -> None:
    told = problems(write(tmp_path, JOB + SWEEP), f"evaluate.degradations=[noise15, {measured}]")
    keys = {line.split()[1] for line in told if "measured on different images" in line}
    both = measured == "phone-night"  # it uses noise35
    assert keys == {
        f"sweep.space.{one}" for one in list(yaml.safe_load(SWEEP)["sweep"]["space"])[0 if both else 1 :]
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.shuffle.1.tiny_noise.sigma", "0.shuffle.7.tiny_noise.sigma", "no item '7' in a list of 2"),
        ("0.shuffle.1.tiny_noise.sigma", "x.shuffle.1.tiny_noise.sigma", "no item 'x' in a list of 2"),
        ("0.tiny_noise.sigma: {r", "0.tiny_noise.sgma: {r", 'Did you mean "sigma"?'),
        ("choice: [5, 50]", "choice: [5, 500]", "from 0 to 100 grey levels"),
    ],
)
def test_a_sweep_of_what_a_pipeline_has_not_is_told_with_its_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = write(tmp_path, JOB + SWEEP.replace(old, new))
    first = next(line for line in problems(path, *MEASURED) if message in line)
    assert first.startswith(f"{path}:2")


def test_the_schema_knows_every_operator_with_its_ranges() -> None:
    schema = json_schema()
    bare, mapping = schema["$defs"]["Step"]["anyOf"]
    assert {"tiny_gain", "tiny_shrink"} <= set(bare["enum"])
    assert "tiny_noise" not in bare["enum"]
    sigma = mapping["properties"]["tiny_noise"]["properties"]["sigma"]
    assert (sigma["anyOf"][0]["maximum"], sigma["description"]) == (100, "grey levels")
    for kind in ("Job", "EvaluateJob", "SweepJob"):
        steps = schema["$defs"][kind]["properties"]["degradations"]["additionalProperties"]
        assert steps["items"] == {"$ref": "#/$defs/Step"}


def test_the_schema_accepts_what_the_parser_accepts() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    step = {"$ref": "#/$defs/Step", "$defs": schema["$defs"]}
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    schema_of_step = kind(step)
    for steps in PIPELINES.values():
        for each in steps:
            schema_of_step.validate(each)
    for wrong in (
        "tiny_noise",
        {"tiny_noise": {"sigma": 101}},
        {"x": {}},
        {"shuffle": 3},
        {"use": "a", "tiny_gain": {}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            schema_of_step.validate(wrong)


BLURRED = """\
name: blurred
setting: own
data: {manifests: photographs, crop_pixels: 64, mixture: {soft: 1}}
evaluate: {degradations: [soft]}
train: {steps: 10, schedule: cosine}
track: {experiment: blurred}
degradations:
  soft:
    - maybe:
        probability: 0.5
        steps:
          - gaussian_blur: {sigma: {range: [0.1, 20]}}
  unused:
    - gaussian_blur: {sigma: 25}
"""


def test_a_kernel_too_large_for_a_crop_is_told_at_its_line_with_the_sizes_and_the_cure(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, BLURRED)
    (told, _) = problems(path)
    assert told.split()[:2] == [f"{path}:12", "degradations.soft.0.maybe.steps.0.gaussian_blur"]
    assert "up to 74 pixels on each side" in told
    assert "the smallest training crop, with its margin, has 64 pixels" in told
    assert "Raise data.crop_pixels or data.margin_pixels, or make the kernel smaller." in told
    assert load_job(path, ["data.margin_pixels=5"])  # 64 + 2 x 5 pixels
    assert load_job(path, ["data.crop_pixels=80"])
    assert load_job(path, ["degradations.soft.0.maybe.steps.0.gaussian_blur.sigma=17"])


def test_a_kernel_too_large_for_a_validation_crop_is_told(tmp_path: Path) -> None:
    (told, _) = problems(write(tmp_path, BLURRED), "data.crop_pixels=128", "validation.crop_pixels=64")
    assert "a validation crop has 64 pixels" in told
    assert "Raise validation.crop_pixels" in told


def test_a_kernel_behind_a_resize_is_no_error(tmp_path: Path) -> None:
    resized = BLURRED.replace("  soft:\n", "  soft:\n    - resize: {scale: {range: [0.1, 1]}}\n")
    assert load_job(write(tmp_path, resized))
