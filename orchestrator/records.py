"""Read and check JSON records from untrusted sources, other versions, or interrupted writes."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Annotated, Any, TypeVar, cast

from pydantic import Field, TypeAdapter, ValidationError

T = TypeVar("T")

Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""Text that the system takes as a name or a variable."""

MAX_BYTES = 64 << 20
"""Maximum size of a record."""


class RecordError(ValueError):
    """Bytes that are not a record of the wanted type; the message says where they differ."""


def read_record(kind: type[T], data: bytes | str, *, names: bool = False) -> T:
    """Return the record in `data`. Raises RecordError, and nothing else.

    kind: a dataclass, or a type such as `dict[str, int]`. Unknown fields are ignored. Depth is bounded by pydantic's
    parser of JSON. names: accept names of files that are no UTF-8, with Python's surrogates; others must not hold any.
    """
    if len(data) > MAX_BYTES:
        raise RecordError(f"has more than {MAX_BYTES:,} bytes")
    try:
        raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
        text = _ESCAPE.sub(_stand_in, raw) if names and b"\\u" in raw else raw
        record: T = _adapter(cast(Hashable, kind)).validate_json(text, strict=True)
        return record if len(text) == len(raw) else cast(T, _with_bytes(record))
    except ValidationError as error:
        raise _explained(error) from error


def check_record(kind: type[T], content: object) -> T:
    """Return the record that a part of another record holds. Raises RecordError, and nothing else."""
    return read_record(kind, json.dumps(content))


_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u(?P<byte>[dD][cC][89a-fA-F][0-9a-fA-F])|\\.",
    re.DOTALL,
)
"""An escape in JSON: a pair of surrogates, a byte of a name that is no UTF-8, or another one."""
_STAND_IN = rb"\udbf7\u"
_STOOD_IN = re.compile("[\U0010dc80-\U0010dcff]")


def _stand_in(escape: re.Match[bytes]) -> bytes:
    """Return an escape as pydantic takes it: bytes of a name, in Python U+DC80 to U+DCFF, as U+10DC80 to U+10DCFF."""
    return _STAND_IN + escape["byte"] if escape["byte"] else escape[0]


def _with_bytes(value: Any) -> Any:
    """Return a record with the bytes of names in place of what stood in for them."""
    if isinstance(value, str):
        return _STOOD_IN.sub(lambda found: chr(ord(found[0]) - 0x100000), value)
    if isinstance(value, dict):
        return {_with_bytes(key): _with_bytes(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_with_bytes, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _with_bytes(getattr(value, each.name)) for each in fields(value)})
    return value


def _explained(error: ValidationError) -> RecordError:
    first = error.errors(include_url=False, include_input=False)[0]
    at = ".".join(str(part) for part in first["loc"])
    return RecordError(f"{at}: {first['msg']}" if at else str(first["msg"]))


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(type[Any], kind))
