"""Watch an alias of the registry and activate the version that it points to, if that version works."""

from __future__ import annotations

import logging
from collections.abc import Callable

from orchestrator.errors import OrchestratorError
from orchestrator.serving.active_model import ActiveModel
from orchestrator.serving.served_model import ServedModel
from shards.errors import ShardsError

log = logging.getLogger(__name__)


class AliasWatcher:
    """Poller that moves the active model with the alias.

    current_version: returns the version that the alias points to.
    load_model: returns that version, with its weights.
    smoke_test: restores a probe image with it in a replica; returns what is wrong, or "".
    """

    def __init__(
        self,
        active: ActiveModel,
        current_version: Callable[[], str],
        load_model: Callable[[], ServedModel],
        smoke_test: Callable[[ServedModel], str],
    ) -> None:
        self.active = active
        self.last_error = ""
        """Why the last request to the registry failed, or ""."""
        self._current_version = current_version
        self._load_model = load_model
        self._smoke_test = smoke_test

    def poll(self) -> None:
        """Look at the alias once and act on it; errors of the registry or of a model are recorded, not raised."""
        try:
            version = self._current_version()
        except OrchestratorError as error:
            if not self.last_error:
                log.warning(
                    "the registry does not answer, still serving %s: %s", self.active.current.label, error
                )
            self.last_error = str(error)
            return
        self.last_error = ""
        if version == self.active.current.version:
            self.active.clear_rejection()
        elif self.active.may_try(version):
            try:
                model = self._load_model()
            except (OrchestratorError, ShardsError) as error:
                self.active.reject(version, str(error))
                return
            if problem := self._smoke_test(model):
                self.active.reject(model.version, problem)
            else:
                self.active.activate(model)
