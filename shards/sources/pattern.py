"""File patterns with captured fields: `rainy/rain-{key:d}.png` matches `rainy/rain-7.png` with `key` = 7.

    {name}        captures part of a file or folder name, as little as fits
    {name:d}      digits            {name:f}   a decimal number            {name:a|b|c}   one of these
    (png|jpg)     one of these, not captured
    *             anything within one name            **/   any folders, or none

Paths are relative, with `/`. Case is ignored. Patterns and paths are compared in Unicode's form NFC, since macOS
writes an accent as a character of its own.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from shards.errors import PackError

_KINDS = {"": r"[^/]+?", "d": r"\d+", "f": r"\d*\.?\d+"}
_TOKEN = re.compile(
    r"\{(?P<name>\w+)(?::(?P<kind>[^{}]*))?\}|\((?P<choice>[^()]*)\)|(?P<deep>\*\*/)|(?P<any>\*)"
)


def as_one_form(name: str) -> str:
    """Return a name in the form in which names are compared."""
    return unicodedata.normalize("NFC", name)


@dataclass(frozen=True)
class Pattern:
    """A pattern that matches paths."""

    text: str

    def __post_init__(self) -> None:
        if any(sign in _TOKEN.sub("", self.text) for sign in "{}()"):
            raise PackError(f"pattern {self.text!r} has an unbalanced bracket.")

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Names of the captured fields, in order."""
        return tuple(dict.fromkeys(m["name"] for m in _TOKEN.finditer(self.text) if m["name"]))

    def match(self, path: str) -> dict[str, str] | None:
        """Return the fields of `path`, or None when it does not match."""
        found = self._whole.fullmatch(path)
        return None if found is None else found.groupdict()

    def match_below(self, path: str) -> tuple[str, dict[str, str]] | None:
        """Match the end of `path`; return the folders before it (the base) and the fields, or None."""
        found = self._anywhere.fullmatch(path)
        if found is None:
            return None
        fields = found.groupdict()
        return fields.pop("base_") or "", fields

    def fill(self, fields: Mapping[str, str]) -> str:
        """Return the pattern with the known fields filled in."""
        return _TOKEN.sub(lambda m: fields.get(m["name"], m[0]) if m["name"] else m[0], self.text)

    @cached_property
    def _whole(self) -> re.Pattern[str]:
        return self._compile("")

    @cached_property
    def _anywhere(self) -> re.Pattern[str]:
        return self._compile("(?P<base_>(?:[^/]+/)*?)")

    def _compile(self, head: str) -> re.Pattern[str]:
        out, at, seen, text = [head], 0, set[str](), as_one_form(self.text)
        for token in _TOKEN.finditer(text):
            out.append(re.escape(text[at : token.start()]))
            at = token.end()
            if token["name"]:
                kind = token["kind"] or ""
                inside = _KINDS.get(kind) or "|".join(map(re.escape, kind.split("|")))
                out.append(
                    f"(?P={token['name']})" if token["name"] in seen else f"(?P<{token['name']}>{inside})"
                )
                seen.add(token["name"])
            elif token["choice"] is not None:
                out.append(f"(?:{'|'.join(map(re.escape, token['choice'].split('|')))})")
            else:
                out.append("(?:.*/)?" if token["deep"] else "[^/]*")
        out.append(re.escape(text[at:]))
        return re.compile("".join(out), re.IGNORECASE)
