"""Mask credentials in what is printed or stored: the one place that knows what they look like."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any

_MASK = "***"
# A password may contain "/" and "@" unescaped, so everything up to the last "@" is masked.
_USER = re.compile(r"//[^\s/:]*(?::\S*)?@")
_QUERY = re.compile(
    r"([?&;][^=&;\s]*(?:password|passwd|pwd|token|secret|signature|credential|key)[^=&;\s]*=)[^&;#\s'\"]+",
    re.IGNORECASE,
)


def without_password(text: str) -> str:
    """Return `text` with `***` for user and password of each URI, and for secrets in its query."""
    return _QUERY.sub(rf"\1{_MASK}", _USER.sub(f"//{_MASK}@", text))


def masked(value: Any) -> Any:
    """Return nested mappings and sequences with `without_password` applied to every text."""
    if isinstance(value, str):
        return without_password(value)
    if isinstance(value, Mapping):
        return {name: masked(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(masked(each) for each in value)
    return value


def unmasked(uri: str, known: str | None) -> str:
    """Return a masked URI of a stored job in a form that connects: `known` if it is the same one, else no user."""
    if f"//{_MASK}@" not in uri:
        return uri
    return known if known and without_password(known) == uri else uri.replace(f"//{_MASK}@", "//")


class MaskingFormatter(logging.Formatter):
    """Formatter whose lines have no password, whichever library logs them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return without_password(super().format(record))


def print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None = None
) -> None:
    """Print a traceback to standard error as Python does, without passwords in its messages."""
    sys.stderr.write(without_password("".join(traceback.format_exception(kind, error, trace))))
