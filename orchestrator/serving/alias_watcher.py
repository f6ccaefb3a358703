"""Following an alias of the registry: a promotion reaches the service, a bad model does not."""

from __future__ import annotations

import logging
from collections.abc import Callable

from orchestrator.errors import OrchestratorError
from orchestrator.serving.active_model import Shelf
from orchestrator.serving.served_model import Served
from shards.errors import ShardsError

log = logging.getLogger(__name__)


class Follower:
    """Looks where the alias points and moves the shelf there; not on any request's way.

    version_now: asks the registry for the version.
    fetch: returns that version, complete.
    try_out: restores a trial image with it in a replica and returns what is wrong, or "".
    """

    def __init__(
        self,
        shelf: Shelf,
        version_now: Callable[[], str],
        fetch: Callable[[], Served],
        try_out: Callable[[Served], str],
    ) -> None:
        self.shelf = shelf
        self._problem = ""
        self._version_now = version_now
        self._fetch = fetch
        self._try_out = try_out

    def problem_now(self) -> str:
        """Return why the registry could not be asked the last time, or ""."""
        return self._problem

    def step(self) -> None:
        """Look once, and act on what is found. What a registry or a model has wrong is noted, never raised."""
        try:
            version = self._version_now()
        except OrchestratorError as error:
            if not self._problem:
                log.warning("the registry cannot be asked, %s stays: %s", self.shelf.current.label, error)
            self._problem = str(error)
            return
        self._problem = ""
        if version == self.shelf.current.version:
            self.shelf.forget_refusal()
        elif self.shelf.may_try(version):
            try:
                model = self._fetch()
            except (OrchestratorError, ShardsError) as error:
                self.shelf.refuse(version, str(error))
                return
            if problem := self._try_out(model):
                self.shelf.refuse(model.version, problem)
            else:
                self.shelf.put(model)
