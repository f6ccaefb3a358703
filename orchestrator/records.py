"""Read and check JSON records from untrusted sources, other versions, or interrupted writes."""

from __future__ import annotations

import json
from collections.abc import Hashable
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


def read_record(kind: type[T], data: bytes | str) -> T:
    """Return the record in `data`. Raises RecordError, and nothing else.

    kind: a dataclass, a pydantic model or a type such as `dict[str, int]`. Unknown fields are ignored. Depth is bounded
    by pydantic's parser of JSON.
    """
    if len(data) > MAX_BYTES:
        raise RecordError(f"has more than {MAX_BYTES:,} bytes")
    try:
        record: T = _adapter(cast(Hashable, kind)).validate_json(data, strict=True)
        return record
    except ValidationError as error:
        raise _explained(error) from error


def check_record(kind: type[T], content: object) -> T:
    """Return the record that a part of another record holds. Raises RecordError, and nothing else."""
    return read_record(kind, json.dumps(content))


def _explained(error: ValidationError) -> RecordError:
    first = error.errors(include_url=False, include_input=False)[0]
    at = ".".join(str(part) for part in first["loc"])
    return RecordError(f"{at}: {first['msg']}" if at else str(first["msg"]))


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(type[Any], kind))
