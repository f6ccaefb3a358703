"""The secrets of the service: the optional bearer token of its clients, and how any secret is read."""

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
    return read_secret(file, "--token-file", VARIABLE)


def read_secret(file: Path | None, flag: str, variable: str) -> str | None:
    """Return the secret in `file`, which `flag` names, else in the environment variable, else None.

    Raises ServiceError if the file or the variable does not hold one word of ASCII characters.
    """
    if file is None:
        secret, source = os.environ.get(variable), variable
    else:
        try:
            secret, source = file.read_text().strip(), f"{flag} {file}"
        except (OSError, UnicodeDecodeError) as error:
            raise ServiceError(f"{flag} {file}: cannot be read ({error}).") from error
    if secret is None:
        return None
    if not secret or not secret.isascii() or any(c.isspace() for c in secret):
        raise ServiceError(f"{source}: a token or secret is one word of ASCII characters.")
    return secret


def allows(token: str | None, authorization: str | None) -> bool:
    """Return whether an Authorization header has the token; compared in constant time."""
    if token is None:
        return True
    scheme, _, given = (authorization or "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(), token.encode())
    return same and scheme.lower() == "bearer"
