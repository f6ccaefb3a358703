"""What Pydantic says of a wrong value, as part of a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def message_of(error: Mapping[str, Any]) -> str:
    """Return the message of one of Pydantic's errors: it begins small, and our own are without Pydantic's prefix."""
    message = str(error["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
