"""Read and write YAML. Untrusted texts are bounded in size, depth and number, and hold plain values only.

Scalars are those of YAML 1.2, and `yes`, `no`, `on` and `off` as YAML 1.1 has them. Numbers that mean something else
in YAML 1.1 (010 is 8, 1:40 is 100) are errors. A date is text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

Key = tuple[str, ...]

MAX_BYTES = 256 << 10
"""Maximum size of a text."""
_MAX_NODES = 20_000
"""Maximum number of keys and values, where a value behind an alias counts at each place."""
_MAX_DEPTH = 64
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)")
_MAX_DIGITS = 40
_FLOAT = r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)[eE][-+]?[0-9]+$"
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
_UNUSABLE = re.compile("[\0\ud800-\udfff]")


class YamlError(ValueError):
    """A text that is not YAML, or that holds more than plain values, with the line if it is known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message, self.line = message, line


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """PyYAML's composer with a bound of the depth."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise YamlError(
                f"is nested more than {_MAX_DEPTH} levels deep", self.peek_event().start_mark.line + 1
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
    """PyYAML's writer, which also puts text in quotes that `_Loader` would read as a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(f"{_TAG}float", re.compile(_FLOAT), list("-+0123456789."))


@dataclass(frozen=True)
class Document:
    """The values of a YAML text."""

    value: Any
    lines: dict[Key, int]
    """Path of each key and item -> its line."""
    repeated: tuple[tuple[Key, int], ...]
    """Keys that are given again, each with that line."""


def read_yaml(text: str) -> Document:
    """Return the values of a text. Raises YamlError, and nothing else."""
    if len(text) > MAX_BYTES:
        raise YamlError(f"is longer than {MAX_BYTES:,} characters")
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or "it holds signs that are no text"
        raise YamlError(f"is not valid YAML: {what}", mark.line + 1 if mark else None) from error
    except (ValueError, OverflowError) as error:  # numbers of escapes and versions
        if isinstance(error, YamlError):
            raise
        raise YamlError(f"is not valid YAML: {error}") from error
    reader = _Reader()
    value = None if root is None else reader.value(root, ())
    return Document(value, reader.lines, tuple(reader.repeated))


def write_yaml(value: object) -> str:
    """Return plain values as text, for `read_yaml` and for any other reader of YAML 1.1."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False))


class _Reader:
    """Values of nodes, with what was counted and found so far."""

    def __init__(self) -> None:
        self.lines: dict[Key, int] = {}
        self.repeated: list[tuple[Key, int]] = []
        self._nodes = 0

    def value(self, node: yaml.Node, path: Key) -> Any:
        """Return the value of a node, which aliases may reach several times or from within itself."""
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise YamlError(f"holds more than {_MAX_NODES:,} values")
        if len(path) > _MAX_DEPTH:
            raise _error(node, f"is nested more than {_MAX_DEPTH} levels deep")
        if node.tag not in _PLAIN_TAGS:
            raise _error(node, f"has the tag {_shown(node.tag)}; only plain values are read")
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(item, (*path, str(index))) for index, item in enumerate(node.value)]
        return self._mapping(node, path)

    def _mapping(self, node: yaml.Node, path: Key) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for name, below in node.value:
            if name.tag == f"{_TAG}merge":
                for base in below.value if isinstance(below, yaml.SequenceNode) else [below]:
                    found = self.value(base, path)
                    if not isinstance(found, dict):
                        raise _error(name, "`<<` merges mappings only")
                    merged = {**found, **merged}
                continue
            if not isinstance(name, yaml.ScalarNode):
                raise _error(name, "a key is a mapping or a list; keys are words")
            key = _text(name)
            if key in values:
                self.repeated.append(((*path, key), _line(name)))
            else:
                self.lines[(*path, key)] = _line(name)
            values[key] = self.value(below, (*path, key))
        return {**merged, **values}

    def _item(self, node: yaml.Node, path: Key) -> Any:
        self.lines[path] = _line(node)
        return self.value(node, path)


def _scalar(node: yaml.ScalarNode) -> Any:
    text, kind = _text(node), node.tag.removeprefix(_TAG)
    try:
        if kind == "null":
            return None
        if kind == "bool":
            return yaml.SafeLoader.bool_values[text.lower()]
        if kind == "int":
            if _INT.fullmatch(text) is None or len(text) > _MAX_DIGITS:
                raise ValueError
            return int(text.replace("_", ""), 0)
        if kind == "float":
            return float(_infinity(text.replace("_", "")))
    except (ValueError, KeyError):
        what = "has too many digits" if len(text) > _MAX_DIGITS else "is not a number in decimal digits"
        message = f"{_shown(text)} {what}. Write it as 10 or 1.5; text goes in quotes"
        raise _error(
            node, message if kind != "bool" else f"{_shown(text)} is neither true nor false"
        ) from None
    return text


def _infinity(text: str) -> str:
    return re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text, flags=re.IGNORECASE)


def _text(node: yaml.ScalarNode) -> str:
    text: str = node.value
    if _UNUSABLE.search(text):
        raise _error(node, "holds a NUL or half of a character pair. Remove it")
    return text


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _error(node: yaml.Node, message: str) -> YamlError:
    return YamlError(message, _line(node))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
