"""Pipelines: every draw is a function of key and path, and each error names the key of what is wrong."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.degradations.operator import OPERATORS, Operator, Parameter
from shards.degradations.operators.compression import LONGEST
from shards.degradations.parse import MAX_DEPTH, parse_pipelines
from shards.degradations.pipeline import Choice, Range, evaluation_key, generator, training_key
from shards.errors import DegradeError, PipelineError
from tests.tiny_operators import PIPELINES, SECOND_ORDER

pytestmark = pytest.mark.usefixtures("tiny_operators")
CLEAN = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
KEYS = [training_key(3, position) for position in range(40)]


def pipeline(steps: object, name: str = "own"):
    return parse_pipelines({**PIPELINES, name: steps})[name]


def drawn(steps: object, key: str) -> dict[str, tuple]:
    """Values and first random number of each operator, by its path."""
    return {
        each.path: (each.values, generator(key, each.path).random()) for each in pipeline(steps).draw(key)
    }


def test_a_sample_can_be_computed_again_as_the_page_says() -> None:
    page = (Path(__file__).parents[3] / "docs" / "streaming.md").read_text()
    (block,) = (each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "blake2b" in each)
    known = {"clean": CLEAN, "hashlib": hashlib, "np": np, "OPERATORS": OPERATORS}
    exec(block, known)
    own = pipeline([{"gaussian_noise": {"sigma": {"range": [5, 50]}}}])
    assert np.array_equal(own.degrade(CLEAN, training_key(7, 1000)), known["degraded"])


def test_a_digest_can_be_computed_again_as_the_page_says() -> None:
    two = parse_pipelines(
        {"a": [{"gaussian_noise": {"sigma": 30, "channels": "colour"}}], "b": [{"use": "a"}]}
    )

    def sha256(content: object) -> str:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    assert two["a"].digest == sha256(["a", [{"gaussian_noise 2": {"sigma": 30.0}}]])
    assert two["b"].digest == sha256(["b", [{"use": ["a", two["a"].digest]}]])
    assert two["b"].evaluation_digest(7) == hashlib.sha256(f"{two['b'].digest}/7".encode()).hexdigest()


def test_a_pipeline_keeps_size_and_is_the_same_in_another_process() -> None:
    one = pipeline(SECOND_ORDER)
    copy = pickle.loads(pickle.dumps(one))
    images = [one.degrade(CLEAN, key) for key in KEYS]
    assert all(image.shape == CLEAN.shape and image.dtype == np.uint8 for image in images)
    assert len({image.tobytes() for image in images}) == len(KEYS)
    assert all(
        np.array_equal(copy.degrade(CLEAN, key), image) for key, image in zip(KEYS, images, strict=True)
    )
    assert copy.digest == one.digest


def test_every_kind_of_step_happens_and_its_rounds_and_orders_differ() -> None:
    paths = {key: [each.path for each in pipeline(SECOND_ORDER).draw(key)] for key in KEYS}
    assert {sum("repeat" in path for path in each) for each in paths.values()} == {3, 6}
    assert len({tuple(path.rsplit("/")[-1] for path in each[:3]) for each in paths.values()}) == 6
    for step in ("maybe", "one_of"):
        assert 5 < sum(any(f"/{step}:0" in path for path in each) for each in paths.values()) < 40


@pytest.mark.parametrize(
    "added", ["tiny_shrink", {"use": "noise35"}, {"maybe": {"probability": 1, "steps": ["tiny_gain"]}}]
)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_an_added_step_moves_no_draw_of_the_others(added: object, place: int) -> None:
    noise = {"tiny_noise": {"sigma": {"range": [0, 9]}}}
    steps = [noise, {"shuffle": [noise, {"tiny_gain": {"gain": {"range": [0, 1]}}}]}, noise]
    for key in KEYS[:5]:
        before = drawn(steps, key)
        assert drawn([*steps[:place], added, *steps[place:]], key).items() >= before.items()
        inner = [*steps[1]["shuffle"], added]
        after = drawn([steps[0], {"shuffle": inner}, steps[2]], key)
        assert after.items() >= before.items()
        assert [path for path in after if path in before] == list(before), "their order stays too"


def test_a_parameter_that_becomes_fixed_moves_no_other_draw() -> None:
    free = {"gain": {"range": [0, 1]}, "flip": {"probability": 0.5}}
    for key in KEYS[:5]:
        (before,) = drawn([{"tiny_gain": free}], key).values()
        (after,) = drawn([{"tiny_gain": {**free, "gain": 1}}], key).values()
        assert before[0]["flip"] == after[0]["flip"]
        assert before[1] == after[1]


def test_a_pipeline_within_another_one_draws_by_its_own_place() -> None:
    noise = {"tiny_noise": {"sigma": {"range": [0, 9]}}}
    two = parse_pipelines({"a": [noise], "b": [{"use": "a"}, {"use": "a"}]})
    values = [each.values["sigma"] for each in (*two["a"].draw("k"), *two["b"].draw("k"))]
    assert len(set(values)) == 3


@given(st.floats(0, 1, exclude_max=True), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_a_range_holds_its_draws(number: float, low: float, high: float) -> None:
    low, high = sorted((low, high))
    for log in (False, True):
        assert low <= Range(low, high, log).at(number) <= high
    integers = Range(math.floor(low), math.ceil(high), integer=True)
    assert integers.low <= integers.at(number) <= integers.high
    assert isinstance(integers.at(number), int)


def test_a_log_range_holds_ends_whose_ratio_no_float_can_hold() -> None:
    drawn = [Range(1e-320, 50, log=True).at(number) for number in (0.0, 0.5, 1 - 2**-53)]
    assert drawn == pytest.approx([1e-320, math.sqrt(1e-320) * math.sqrt(50), 50], rel=1e-3)


def test_integers_reach_both_ends_and_weights_count() -> None:
    numbers = np.linspace(0, 1, 1000, endpoint=False)
    assert np.bincount([Range(0, 3, integer=True).at(n) for n in numbers]).tolist() == [250] * 4
    assert {Range(1, 16, log=True, integer=True).at(n) for n in numbers} == set(range(1, 17))
    drawn = [Choice((1.0, 2.0, 3.0), (0.0, 3.0, 1.0)).at(n) for n in numbers]
    assert [drawn.count(value) for value in (1.0, 2.0, 3.0)] == [0, 750, 250]


def test_training_and_evaluation_draw_differently() -> None:
    one = pipeline(SECOND_ORDER)
    keys = (training_key(0, 1), training_key(1, 0), evaluation_key(0, "1"), evaluation_key(1, "0"))
    assert len({one.degrade(CLEAN, key).tobytes() for key in keys}) == 4


def test_equal_pipelines_have_equal_digests_and_others_do_not() -> None:
    short = pipeline(["tiny_shrink", {"tiny_noise": {"sigma": 3}}])
    long = pipeline([{"tiny_shrink": {"factor": 2}}, {"tiny_noise": {"sigma": 3.0}}])
    assert short.digest == long.digest
    others = [
        pipeline(["tiny_shrink", {"tiny_noise": {"sigma": 4}}]),
        pipeline(["tiny_shrink", {"tiny_noise": {"sigma": {"range": [3, 3]}}}]),
        pipeline([{"shuffle": ["tiny_shrink", {"tiny_noise": {"sigma": 3}}]}]),
        pipeline(["tiny_shrink", {"tiny_noise": {"sigma": 3}}], "other"),
    ]
    assert len({each.digest for each in (short, *others)}) == 5
    inner = [
        parse_pipelines({"a": [{"tiny_noise": {"sigma": sigma}}], "b": [{"use": "a"}]})["b"].digest
        for sigma in (3, 4)
    ]
    assert inner[0] != inner[1], "the digest holds what a pipeline uses"


def test_a_digest_changes_with_the_version_of_an_operator_and_not_with_a_new_parameter_at_its_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = pipeline([NOISE]).digest
    one = OPERATORS["tiny_noise"]
    wider = {**one.parameters, "width": Parameter(0, 9, default=0.0)}
    monkeypatch.setitem(OPERATORS, "tiny_noise", replace(one, parameters=wider))
    assert pipeline([NOISE]).digest == first
    monkeypatch.setitem(OPERATORS, "tiny_noise", replace(one, version=2))
    assert pipeline([NOISE]).digest != first


def test_what_a_pipeline_says_of_itself_is_read_back_as_the_same() -> None:
    steps = [step for step in SECOND_ORDER if "use" not in json.dumps(step)]
    one = pipeline(steps)
    assert pipeline(json.loads(json.dumps(one.steps.plain()))).digest == one.digest


@pytest.mark.parametrize(
    ("size", "largest"), [((2, 3), (8, 12)), ((5000, 1), (16382, 4)), ((20000, 1), (20000, 4))]
)
def test_no_side_becomes_four_times_as_long_or_too_long_for_a_codec(
    size: tuple[int, int], largest: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    look = Operator("look", lambda image, rng: sizes.append(image.shape[:2]) or image, {})
    monkeypatch.setitem(OPERATORS, "look", look)
    own = pipeline(
        [
            {"resize": {"scale": 4}},
            "look",
            {"resize": {"scale": 4}},
            "look",
            {"resize_back": {"scale": 4}},
            "look",
        ]
    )
    own.degrade(np.zeros((*size, 3), np.uint8), "k")
    assert sizes == [largest] * 3


@pytest.mark.parametrize("codec", LONGEST)
@pytest.mark.parametrize("turned", [False, True])
def test_an_image_that_is_too_large_for_a_codec_is_told_with_its_id(codec: str, turned: bool) -> None:
    own = pipeline([{codec: {"quantiser": 30} if codec == "h264" else {"quality": 50}}])

    def strip(side: int) -> np.ndarray:
        return np.zeros((1, side, 3) if turned else (side, 1, 3), np.uint8)

    own.degrade(strip(LONGEST[codec]), "k")
    with pytest.raises(
        DegradeError, match=rf"own/{codec}:0 cannot degrade test/0/one: {codec} takes at most"
    ):
        own.degrade(strip(LONGEST[codec] + 1), evaluation_key(0, "one"))


def test_an_image_that_grows_without_end_is_brought_back(monkeypatch: pytest.MonkeyPatch) -> None:
    grow = Operator("grow", lambda image, rng: np.tile(image, (3, 3, 1)), {})
    monkeypatch.setitem(OPERATORS, "grow", grow)
    one = pipeline([{"repeat": {"times": 20, "steps": ["grow"]}}])
    assert one.degrade(CLEAN, "k").shape == CLEAN.shape


NOISE = {"tiny_noise": {"sigma": 5}}


@pytest.mark.parametrize(
    ("written", "key", "message"),
    [
        ([], "", "must be a mapping"),
        ({"rain": [NOISE]}, "rain", "published"),
        ({"noise15": [NOISE]}, "noise15", "published"),
        ({"noise": [NOISE]}, "noise", "none of noise"),
        ({"Phone": [NOISE]}, "Phone", "small letters"),
        ({"a.b": [NOISE]}, "a.b", "small letters"),
        ({7: [NOISE]}, "7", "small letters"),
        ({"a": []}, "a", "no steps"),
        ({"a": [{"repeat": {"times": 0, "steps": [NOISE]}}]}, "a", "never applies"),
        ({"a": [{"one_of": [{"steps": []}, {"steps": []}]}]}, "a", "never applies"),
        ({"a": "tiny_shrink"}, "a", "a list of steps"),
        ({"a": {"tiny_noise": {"sigma": 1}}}, "a", "a list of steps"),
        ({"a": ["tiny_nois"]}, "a.0", 'Did you mean "tiny_noise"?'),
        ({"a": [NOISE, {"shufle": [NOISE]}]}, "a.1.shufle", 'Did you mean "shuffle"?'),
        ({"a": ["b"], "b": [NOISE]}, "a.0", "use: b"),
        ({"a": [["tiny_shrink"]]}, "a.0", "one operator"),
        ({"a": [{**NOISE, "tiny_shrink": {}}]}, "a.0", "one operator"),
        ({"a": [None]}, "a.0", "one operator"),
        ({"a": [{}]}, "a.0", "one operator"),
        ({"a": ["tiny_noise"]}, "a.0", "needs sigma"),
        ({"a": [{"tiny_noise": 5}]}, "a.0.tiny_noise", "its parameters"),
        ({"a": [{"tiny_noise": {"sigm": 1, "sigma": 1}}]}, "a.0.tiny_noise.sigm", 'Did you mean "sigma"?'),
        *(
            ({"a": [{"tiny_noise": {"sigma": value}}]}, "a.0.tiny_noise.sigma", message)
            for value, message in [
                (101, "from 0 to 100 grey levels"),
                (-1, "from 0 to 100"),
                (True, "a number"),
                ("much", "a number"),
                (None, "a number"),
                (math.nan, "a number"),
                (math.inf, "a number"),
                ([1, 2], "a number"),
                ({"range": [0, 101]}, "from 0 to 100"),
                ({"range": [3, 1]}, "larger than the second"),
                ({"range": [3]}, "two numbers"),
                ({"range": 3}, "a list"),
                ({"log_range": [0, 3]}, "starts above 0"),
                ({"choice": []}, "a list"),
                ({"choice": [1, "x"]}, "a number"),
                ({"choice": [1, 2], "weights": [1]}, "each of the 2"),
                ({"choice": [1, 2], "weights": [0, 0]}, "0 only"),
                ({"choice": [1, 2], "weights": [-1, 2]}, "from 0"),
                ({"range": [1, 2], "weights": [1, 2]}, "write a value"),
                ({"range": [1, 2], "choice": [1]}, "write a value"),
                ({"rnge": [1, 2]}, "write a value"),
                ({"probability": 0.5}, "not on or off"),
                ({}, "write a value"),
            ]
        ),
        ({"a": [{"tiny_gain": {"clip": "yse"}}]}, "a.0.tiny_gain.clip", 'Did you mean "yes"?'),
        ({"a": [{"tiny_gain": {"clip": {"range": ["no", "yes"]}}}]}, "a.0.tiny_gain.clip", "use choice"),
        ({"a": [{"tiny_gain": {"flip": {"probability": 2}}}]}, "a.0.tiny_gain.flip", "from 0 to 1"),
        ({"a": [{"tiny_gain": {"flip": 2}}]}, "a.0.tiny_gain.flip", "true or false"),
        ({"a": [{"tiny_shrink": {"factor": 1.5}}]}, "a.0.tiny_shrink.factor", "an integer"),
        ({"a": [{"shuffle": "tiny_shrink"}]}, "a.0.shuffle", "a list of steps"),
        ({"a": [{"shuffle": []}]}, "a.0.shuffle", "no steps"),
        ({"a": [{"repeat": [NOISE]}]}, "a.0.repeat", "times, steps"),
        ({"a": [{"repeat": {"times": 2}}]}, "a.0.repeat", "needs the key steps"),
        ({"a": [{"repeat": {"times": 21, "steps": [NOISE]}}]}, "a.0.repeat.times", "from 0 to 20"),
        ({"a": [{"repeat": {"time": 2, "steps": [NOISE]}}]}, "a.0.repeat.time", 'Did you mean "times"?'),
        ({"a": [{"one_of": []}]}, "a.0.one_of", "a list"),
        ({"a": [{"one_of": [{"weight": 0, "steps": [NOISE]}]}]}, "a.0.one_of", "0 only"),
        ({"a": [{"one_of": [{"weight": "x", "steps": [NOISE]}]}]}, "a.0.one_of.0.weight", "a number"),
        (
            {"a": [{"one_of": [{"weight": {"range": [1, 2]}, "steps": [NOISE]}]}]},
            "a.0.one_of",
            "weights are numbers",
        ),
        ({"a": [{"one_of": [{"steps": [NOISE]}, {"weight": 2}]}]}, "a.0.one_of.1", "needs the key steps"),
        ({"a": [{"maybe": {"probability": 1.5, "steps": [NOISE]}}]}, "a.0.maybe.probability", "from 0 to 1"),
        (
            {"a": [{"maybe": {"probability": {"range": [0, 1]}, "steps": [NOISE]}}]},
            "a.0.maybe.probability",
            "number",
        ),
        ({"a": [{"use": "a"}]}, "a.0.use", "a → a"),
        ({"a": [{"shuffle": [{"use": "b"}]}], "b": [{"use": "a"}]}, "a.0.shuffle.0.use", "a → b → a"),
        ({"a": [{"use": "c"}], "b1": [NOISE]}, "a.0.use", "no pipeline (a, b1, "),
        ({"a": [{"use": ["b"]}]}, "a.0.use", "no pipeline"),
        (
            {"a": [{"repeat": {"times": 20, "steps": [{"repeat": {"times": 6, "steps": [NOISE]}}]}}]},
            "a",
            "120 operators",
        ),
    ],
)
def test_what_cannot_be_read_is_told_with_its_key(written: object, key: str, message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        parse_pipelines(written)
    told = {".".join(place): text for place, text in caught.value.problems}
    assert next(iter(told)) == key
    assert message in told[key]


def test_a_name_of_the_job_comes_before_that_of_a_preset() -> None:
    presets = {"known": [{"tiny_noise": {"sigma": 1}}]}
    assert parse_pipelines({"a": [{"use": "known"}]}, presets).keys() == {"a"}
    own = parse_pipelines({"known": [NOISE], "a": [{"use": "known"}]}, presets)
    (applied,) = own["a"].draw("k")
    assert applied.values == {"sigma": 5}
    with pytest.raises(PipelineError, match=r"refers to itself: known → known\. To use the preset known"):
        parse_pipelines({"known": [{"use": "known"}]}, presets)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(PipelineError) as caught:
        parse_pipelines({"rain": [NOISE], "a": ["x", {"tiny_noise": {"sigma": -1}}], "b": [{"use": "a"}]})
    assert [".".join(key) for key, _ in caught.value.problems] == ["rain", "a.0", "a.1.tiny_noise.sigma"]


def test_depth_and_doubling_are_bounded_before_they_cost_anything() -> None:
    deep: list = [NOISE]
    for _ in range(60):
        deep = [{"shuffle": deep}]
    chain = {f"p{n}": [{"use": f"p{n + 1}"}] for n in range(3000)} | {"p3000": [NOISE]}
    doubling = {f"p{n}": [{"use": f"p{n + 1}"}] * 2 for n in range(MAX_DEPTH - 2)}
    doubling[f"p{MAX_DEPTH - 2}"] = [NOISE]
    for written, message in [({"a": deep}, "deep"), (chain, "deep"), (doubling, "128 operators")]:
        with pytest.raises(PipelineError, match=message):
            parse_pipelines(written)


@pytest.mark.parametrize("number", [MAX_DEPTH, MAX_DEPTH + 1, 400])
@pytest.mark.parametrize("step", [1, -1])
def test_depth_does_not_depend_on_the_order_of_names(number: int, step: int) -> None:
    chain = {"p0": [NOISE]} | {f"p{n}": [{"use": f"p{n - 1}"}] for n in range(1, number)}
    written = dict(list(chain.items())[::step])
    if number <= MAX_DEPTH:
        assert parse_pipelines(written)[f"p{number - 1}"].depth == number
        return
    with pytest.raises(PipelineError) as caught:
        parse_pipelines(written)
    assert {text for _, text in caught.value.problems} == {"has steps within each other more than 10 deep."}


def test_branches_that_use_each_other_are_read_at_once() -> None:
    wide = {f"p{n}": [{"one_of": [{"steps": [{"use": f"p{n - 1}"}]}] * 40}] for n in range(1, 5)}
    assert parse_pipelines({"p0": [NOISE], **wide})["p4"].most == 1


_KEYS = "shuffle repeat one_of maybe use weight steps times sigma gain flip range choice weights"
WORDS = st.sampled_from(["tiny_noise", "tiny_gain", "a", *_KEYS.split()])
ANYTHING = st.recursive(
    WORDS | st.integers(-5, 200) | st.floats() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.integers(0, 1), inner, max_size=3),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["a", "b"]), st.lists(ANYTHING, min_size=1, max_size=3), min_size=1))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_is_written_is_read_or_told(written: object) -> None:
    with suppress(PipelineError):
        for each in parse_pipelines(written).values():
            assert len(each.draw("k")) <= each.steps.most
