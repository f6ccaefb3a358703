"""One process at a time may move the aliases of a registered model, across machines, by what MLflow makes unique.

MLflow has no compare-and-set: the last writer of an alias or a tag wins. The name of a registered model is unique in
its database, though, so of many that create the model `NAME.lease` exactly one succeeds; it deletes it when done.

Guaranteed: of two holders that are alive, the second begins after the first has ended. A holder that died is passed
over when its lease has stood unchanged for `LEASE_SECONDS` of the waiter's own clock. A holder that slept through that
time finds out before it writes (`Lease.check`); only one that sleeps between this check and its write, a request later,
can still write late.
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

from orchestrator.errors import RegistryError
from orchestrator.tracking import client as tracking
from orchestrator.tracking.uri import without_password

log = logging.getLogger(__name__)

LEASE_SECONDS = 30.0
"""How long a lease may stand before those who wait take its holder for dead; a holder needs about one second."""

WAIT_SECONDS = 180.0
POLL_SECONDS = 0.3

_TOKEN, _HOLDER = "mirage.lease", "mirage.lease_holder"


@dataclass(frozen=True)
class Lease:
    """The right to move the aliases of one registered model."""

    client: Any
    name: str
    token: str

    def check(self) -> None:
        """Raise RegistryError when the lease has been taken over."""
        if _held(self.client, self.name)[0] != self.token:
            raise RegistryError(
                f"{self.name}: this process was away for so long that its turn was given to another. "
                "Nothing was moved; run the command again."
            )


@contextmanager
def lease(tracking_uri: str, model: str, wait_seconds: float = WAIT_SECONDS) -> Iterator[Lease]:
    """Hold the lease of `model`. Raises RegistryError when others hold it for `wait_seconds` or MLflow is away."""
    client = tracking.connect(tracking_uri)
    mine = Lease(client, f"{model}.lease", uuid.uuid4().hex)
    deadline = time.monotonic() + wait_seconds
    seen, since = "", time.monotonic()
    while not _create(mine, model):
        token, holder = _held(client, mine.name)
        now = time.monotonic()
        if token != seen:
            seen, since = token, now
        elif token and now - since > LEASE_SECONDS:
            log.warning("%s: %s has not ended within %.0f s and is passed over", model, holder, now - since)
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


def _create(mine: Lease, model: str) -> bool:
    from mlflow.exceptions import MlflowException

    tags = {_TOKEN: mine.token, _HOLDER: f"process {os.getpid()} on {socket.gethostname()}"}
    try:
        mine.client.create_registered_model(mine.name, tags, f"Stands here while an alias of {model} moves.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise _told(mine.client, error) from error
        return False
    return True


def _held(client: Any, name: str) -> tuple[str, str]:
    """Return token and description of the holder; empty when nobody holds it."""
    from mlflow.exceptions import MlflowException

    try:
        tags = client.get_registered_model(name).tags
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise _told(client, error) from error
        return "", "nobody"
    return tags.get(_TOKEN, ""), tags.get(_HOLDER, "somebody")


def _told(client: Any, error: Exception) -> RegistryError:
    return RegistryError(f"MLflow at {without_password(client.tracking_uri)}: {tracking.one_line(error)}")


def _delete(client: Any, name: str, token: str) -> None:
    """Delete the lease if it is still that one."""
    if _held(client, name)[0] == token:
        client.delete_registered_model(name)
