"""The optional bearer token: one secret that every restoring request has to show."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from orchestrator.errors import ServiceError

VARIABLE = "MIRAGE_SERVE_TOKEN"


def read_token(file: Path | None) -> str | None:
    """Return the token of `file`, else of the environment, else None: no token is asked for.

    Raises ServiceError where a token was meant but is none.
    """
    if file is None:
        token, place = os.environ.get(VARIABLE), VARIABLE
    else:
        try:
            token, place = file.read_text().strip(), f"--token-file {file}"
        except (OSError, UnicodeDecodeError) as error:
            raise ServiceError(f"--token-file {file}: cannot be read ({error}).") from error
    if token is None:
        return None
    if not token or not token.isascii() or any(c.isspace() for c in token):
        raise ServiceError(f"{place}: a token is one word of ASCII characters.")
    return token


def allows(token: str | None, authorization: str | None) -> bool:
    """Whether an Authorization header shows the token; the time it takes tells nothing about the token."""
    if token is None:
        return True
    scheme, _, shown = (authorization or "").partition(" ")
    same = hmac.compare_digest(shown.strip().encode(), token.encode())
    return same and scheme.lower() == "bearer"
