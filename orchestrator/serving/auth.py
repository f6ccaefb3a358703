"""The optional bearer token of the service."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from orchestrator.errors import ServiceError

VARIABLE = "MIRAGE_SERVE_TOKEN"


def read_token(file: Path | None) -> str | None:
    """Return the token in `file`, else in the environment, else None: then requests need none.

    Raises ServiceError if the file or the variable holds no valid token.
    """
    if file is None:
        token, source = os.environ.get(VARIABLE), VARIABLE
    else:
        try:
            token, source = file.read_text().strip(), f"--token-file {file}"
        except (OSError, UnicodeDecodeError) as error:
            raise ServiceError(f"--token-file {file}: cannot be read ({error}).") from error
    if token is None:
        return None
    if not token or not token.isascii() or any(c.isspace() for c in token):
        raise ServiceError(f"{source}: a token is one word of ASCII characters.")
    return token


def allows(token: str | None, authorization: str | None) -> bool:
    """Return whether an Authorization header has the token; compared in constant time."""
    if token is None:
        return True
    scheme, _, given = (authorization or "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(), token.encode())
    return same and scheme.lower() == "bearer"
