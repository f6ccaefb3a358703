"""Say in plain words what a model removes: for `/model` and the page."""

from __future__ import annotations

from collections.abc import Iterable

from shards.sample import CDD11, DEGRADATIONS, NOISE, SIGMA

UNKNOWN = "Restores photographs. What this model was trained on is not recorded in its weights."

_WORDS = {
    "lowlight": "low light",
    "raindrop": "raindrops on the lens",
    "underwater": "the colour cast of water",
    "toled": "the veil of a T-OLED display",
    "poled": "the veil of a P-OLED display",
}
"""Words for names that are not words themselves."""

_PARTS = {name: folder.split("_") for folder, name in CDD11.items() if "_" in folder}
"""Combination -> the folders of its parts."""


def degradation_title(degradation: str) -> str:
    """Return the name of a degradation, or of the average over several, as a heading of a table."""
    if degradation in SIGMA:
        return f"noise, \u03c3 = {SIGMA[degradation]}"
    if degradation in _PARTS:
        return _joined([_noun(CDD11[part]) for part in _PARTS[degradation]], "and")
    return _WORDS.get(degradation, degradation.replace("_", " "))


def model_description(degradations: Iterable[str]) -> str:
    """Return one sentence about what a model restores that was trained on these degradations."""
    given = list(dict.fromkeys(NOISE if each in SIGMA else each for each in degradations))
    if not given:
        return UNKNOWN
    known = [each for each in given if each not in _PARTS and (each in DEGRADATIONS or each == NOISE)]
    own = [each for each in given if each not in _PARTS and each not in known]
    combined = [each for each in given if each in _PARTS]
    covered = [each for each in combined if all(CDD11[part] in known for part in _PARTS[each])]
    nouns = [_noun(each) for each in known]
    if covered:
        nouns.append("several of these at once")
    nouns += [degradation_title(each) for each in combined if each not in covered]
    if own:
        quoted = [f"“{degradation_title(each)}”" for each in own]
        nouns.append(f"the degradation{'s' * (len(own) > 1)} {_joined(quoted, 'and')}")
    return f"Restores photographs that have {_joined(nouns, 'or')}."


def _noun(degradation: str) -> str:
    return _WORDS.get(degradation, degradation)


def _joined(words: list[str], conjunction: str) -> str:
    *others, last = words
    return f"{', '.join(others)} {conjunction} {last}" if others else last
