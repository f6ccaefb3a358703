"""A lease per registered model: one process at a time may move its aliases, across machines.

MLflow has no compare-and-set: the last writer of an alias or a tag wins. The name of a registered model is unique in
its database, however, so of many processes that create `NAME.lease` exactly one succeeds; it deletes it when done. The
lease is created as an MLflow prompt, which shares the names of registered models without being listed among them.

Guaranteed: of two live holders, the second begins after the first has ended. A lease that did not change for
`LEASE_SECONDS` of a waiter's own clock is taken over: its holder is assumed dead. A holder that was suspended for that
long notices it before it writes (`AliasLease.check`); only one that is suspended between this check and its write,
which is one request later, can still write late.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import RegistryError, RegistryUnavailableError
from orchestrator.masking import without_password
from orchestrator.tracking.client import connect
from orchestrator.tracking.failures import explain

log = logging.getLogger(__name__)

LEASE_SECONDS = 30.0
"""Age at which waiters assume that a lease's holder is dead; a holder needs about one second."""
WAIT_SECONDS = 180.0
POLL_SECONDS = 0.3

_TOKEN, _HOLDER = "mirage.lease", "mirage.lease_holder"


@dataclass(frozen=True)
class AliasLease:
    """The right to move the aliases of one registered model."""

    client: Any
    name: str
    token: str

    def check(self) -> None:
        """Raise RegistryError if another process has taken over the lease."""
        if _holder(self.client, self.name)[0] != self.token:
            raise RegistryError(
                f"{self.name}: this process was suspended for so long that another one took over. "
                "No alias was moved; run the command again."
            )


@contextmanager
def lease(tracking_uri: str, model: str, wait_seconds: float = WAIT_SECONDS) -> Iterator[AliasLease]:
    """Hold the lease of `model`. Raises RegistryError after `wait_seconds` of waiting, or if MLflow fails."""
    client = connect(tracking_uri)
    mine = AliasLease(client, f"{model}.lease", uuid.uuid4().hex)
    deadline = time.monotonic() + wait_seconds
    seen, since = "", time.monotonic()
    while not _create(mine, model):
        token, holder = _holder(client, mine.name)
        now = time.monotonic()
        if token != seen:
            seen, since = token, now
        elif token and now - since > LEASE_SECONDS:
            log.warning("%s: taking over the lease of %s, which is %.0f s old", model, holder, now - since)
            _delete(client, mine.name, token)
        if now > deadline:
            raise RegistryError(
                f"{model}: {holder} has been moving aliases for {wait_seconds:.0f} s. Try again."
            )
        time.sleep(POLL_SECONDS * (0.5 + random.random()))
    try:
        yield mine
    finally:
        _delete(client, mine.name, mine.token)


def _create(mine: AliasLease, model: str) -> bool:
    """Create the lease; return whether this process holds it now."""
    from mlflow.exceptions import MlflowException

    tags = {_TOKEN: mine.token, _HOLDER: f"process {os.getpid()} on {socket.gethostname()}"}
    try:
        mine.client.create_prompt(mine.name, f"Exists while a process moves an alias of {model}.", tags)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise _registry_error(mine.client, error) from error
        return False
    return True


def _holder(client: Any, name: str) -> tuple[str, str]:
    """Return the token and the name of the holder; the token is "" if nobody holds the lease."""
    from mlflow.exceptions import MlflowException

    try:
        prompt = client.get_prompt(name)
    except MlflowException as error:
        raise _registry_error(client, error) from error
    if prompt is None:
        return "", "nobody"
    return prompt.tags.get(_TOKEN, ""), prompt.tags.get(_HOLDER, "another process")


def _registry_error(client: Any, error: Exception) -> RegistryError:
    return RegistryUnavailableError(f"MLflow at {without_password(client.tracking_uri)}: {explain(error)}")


def _delete(client: Any, name: str, token: str) -> None:
    """Delete the lease if it still has this token."""
    if _holder(client, name)[0] == token:
        client.delete_prompt(name)
