"""The gates: what passes, what does not, and what is not compared at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.promotion import gates
from orchestrator.promotion.gates import InferenceCost, VersionScores, paired_difference

DEGRADATIONS = ("haze", "noise25", "rain")
Scores = dict[str, dict[str, float]]

names = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True)
psnr = st.floats(10, 45)


@st.composite
def scores(draw: st.DrawFn) -> Scores:
    return {d: {name: draw(psnr) for name in draw(names)} for d in DEGRADATIONS[: draw(st.integers(1, 3))]}


def shifted(of: Scores, by: float) -> Scores:
    return {d: {name: value + by for name, value in group.items()} for d, group in of.items()}


def evidence(of: Scores, name: str = "version 1") -> VersionScores:
    return VersionScores(name, "rgb-crop16", ("d" * 64,), of, shifted(of, -3.0))


def test_two_pipelines_of_one_name_are_not_compared() -> None:
    of = {"haze": {"a": 30.0}, "blind": {"a": 25.0}}
    one, same, other, packed = (
        replace(evidence(of, f"version {n}"), pipelines=made)
        for n, made in enumerate(({"blind": "a" * 64}, {"blind": "a" * 64}, {"blind": "b" * 64}, {}))
    )
    assert gates.incomparable_reason(one, same) is None
    for theirs in (other, packed):
        told = gates.incomparable_reason(one, theirs)
        assert told is not None
        assert "blind: version 0 was measured with pipeline aaaaaaaaaaaa" in told


few = settings(max_examples=20, deadline=None)


@few
@given(scores())
def test_a_model_is_not_better_than_itself(of: Scores) -> None:
    same = evidence(of)
    verdict = gates.beats_champion(same, same, 0)
    assert (verdict.passed, verdict.required) == (False, "lower bound above 0 dB")
    assert gates.no_degradation_lost(same, same, 0).passed
    assert gates.incomparable_reason(same, same) is None


@few
@given(scores(), st.floats(0.05, 3), st.floats(0.01, 3))
def test_a_model_that_gains_the_same_everywhere_passes_up_to_that_margin(
    of: Scores, gain: float, margin: float
) -> None:
    better, old = evidence(shifted(of, gain)), evidence(of)
    assert gates.beats_champion(better, old, 0).passed
    if abs(gain - margin) > 1e-6:
        assert gates.beats_champion(better, old, margin).passed == (gain > margin)


@few
@given(scores(), st.data())
def test_exchanging_the_models_turns_the_interval_round(of: Scores, data: st.DataObject) -> None:
    other = {d: {name: data.draw(psnr) for name in group} for d, group in of.items()}
    there, back = paired_difference(of, other), paired_difference(other, of)
    assert there.mean == pytest.approx(-back.mean)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.low - 1e-9 <= there.high


@few
@given(scores(), st.data())
def test_the_order_of_photographs_has_no_say(of: Scores, data: st.DataObject) -> None:
    other = {d: {name: data.draw(psnr) for name in group} for d, group in of.items()}
    backwards = {d: dict(reversed(group.items())) for d, group in reversed(of.items())}
    assert paired_difference(backwards, other) == paired_difference(of, other)


@few
@given(scores(), st.floats(0.5, 3), st.floats(0.01, 3))
def test_one_degradation_that_loses_more_than_allowed_is_named(
    of: Scores, loss: float, allowed: float
) -> None:
    lost = {**shifted(of, 5.0), "haze": {name: value - loss for name, value in of["haze"].items()}}
    verdict = gates.no_degradation_lost(evidence(lost), evidence(of), allowed)
    if abs(loss - allowed) > 1e-6:
        assert verdict.passed == (loss < allowed)
    assert verdict.measured.startswith("haze")


@few
@given(scores(), st.data())
def test_a_score_that_is_no_number_passes_no_comparison(of: Scores, data: st.DataObject) -> None:
    degradation = data.draw(st.sampled_from(sorted(of)))
    photograph = data.draw(st.sampled_from(sorted(of[degradation])))
    broken = shifted(of, 5.0)
    broken[degradation][photograph] = float("nan")
    candidate, champion = evidence(broken, "version 2"), evidence(of)
    lost = gates.no_degradation_lost(candidate, champion, 0.1)
    assert not lost.passed
    assert lost.measured.startswith(degradation)
    assert not gates.beats_champion(candidate, champion, 0).passed
    assert not gates.beats_input(candidate).passed
    assert not gates.near_reference(candidate, 1.0, 0.3).passed


def test_a_gain_that_hangs_on_one_photograph_does_not_pass() -> None:
    old = {"rain": {name: 30.0 for name in "abcdefgh"}}
    lucky = {"rain": {**{name: 29.9 for name in "abcdefg"}, "h": 34.0}}
    verdict = gates.beats_champion(evidence(lucky), evidence(old), 0)
    assert paired_difference(lucky, old).mean > 0.4
    assert not verdict.passed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"protocol": "y8"}, "measured by y8, version 1 by rgb-crop16"),
        ({"data": ("e" * 64,)}, "measured on data eeeeeeeeeeee, version 1 on dddddddddddd"),
        (
            {"psnr": {"rain": {"a": 1.0, "b": 1.0}}},
            "measured on 2 photographs, version 1 on 1, and 1 of them",
        ),
        ({"psnr": {"haze": {"a": 1.0}}}, "measured on 1 photographs, version 1 on 0"),
    ],
)
def test_what_was_not_measured_alike_is_not_compared(change: dict[str, object], says: str) -> None:
    champion = evidence({"rain": {"a": 30.0}})
    candidate = replace(champion, name="version 2", **change)  # type: ignore[arg-type]
    why = gates.incomparable_reason(candidate, champion)
    assert why is not None
    assert says in why


def test_the_first_champion_has_to_beat_the_degraded_input() -> None:
    of = {"rain": {"a": 30.0, "b": 31.0}}
    assert gates.beats_input(evidence(of)).passed
    assert not gates.beats_input(replace(evidence(of), input_psnr=of)).passed


def test_near_the_paper_is_a_distance_of_averages() -> None:
    of = evidence({"rain": {"a": 30.0, "b": 32.0}, "haze": {"a": 25.0}})  # 31 and 25: 28 on average
    assert gates.near_reference(of, 28.2, 0.3).passed
    assert not gates.near_reference(of, 28.4, 0.3).passed


def test_budgets_are_gates_of_their_own() -> None:
    measured = InferenceCost(seconds=0.2, gib=1.5, side=512, device="cpu")
    both = list(gates.within_limits(measured, 0.3, 1.0))
    assert [verdict.passed for verdict in both] == [True, False]
    assert [verdict.passed for verdict in gates.within_limits(measured, 0.2, 1.5)] == [True, True]
    assert [verdict.passed for verdict in gates.within_limits(measured, 0.1, 2.0)] == [False, True]
    assert list(gates.within_limits(measured, None, None)) == []


def test_the_table_says_gate_outcome_and_figures() -> None:
    old, new = evidence({"rain": {"a": 30.0}}), evidence({"rain": {"a": 30.5}}, "version 2")
    text = gates.gate_table([gates.beats_champion(new, old, 0.6)])
    assert "better than version 1" in text
    assert "FAIL" in text
    assert "+0.500 dB [+0.500, +0.500]" in text
    assert "at least +0.600 dB" in text
