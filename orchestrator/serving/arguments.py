"""Arguments of the Serve application: the flags of `mirage serve`, and the tracking URI."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from orchestrator.errors import ServiceError
from orchestrator.serving.settings import MEGABYTE, MEGAPIXEL, ServiceSettings

_DEFAULT = ServiceSettings()

_EARLIER_NAMES = {"poll": "poll_seconds", "timeout": "timeout_seconds"}
"""Names of arguments in earlier releases, which files of deployments may hold."""


class ApplicationArguments(BaseModel):
    """Arguments of `orchestrator.serving.app:build`, from `serve run` (text) or a Serve config file (values)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    tracking_uri: str | None = None
    token_file: Path | None = None
    """Read where the front end runs, as is `webhook_secret_file`."""
    webhook_secret_file: Path | None = None
    allow_host: list[str] | None = None
    """Text holds names separated by commas."""
    trust: list[str] | None = None
    """Digests of code that the model may bring and run; text holds them separated by commas."""
    poll_seconds: float | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    """There is no "auto": where the application is built says nothing about the nodes of its replicas."""
    min_replicas: int = _DEFAULT.min_replicas
    max_replicas: int = _DEFAULT.max_replicas
    threads: int = _DEFAULT.threads
    max_batch: int = _DEFAULT.max_batch
    max_megabytes: float = _DEFAULT.max_bytes / MEGABYTE
    max_megapixels: float = _DEFAULT.max_pixels / MEGAPIXEL
    max_in_flight: int = _DEFAULT.max_in_flight
    timeout_seconds: float = _DEFAULT.timeout_seconds

    @field_validator("allow_host", "trust", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> ApplicationArguments:
        """Return the arguments in `values`. Raises ServiceError that names the first argument that is wrong."""
        try:
            return cls(**{_EARLIER_NAMES.get(name, name): value for name, value in values.items()})
        except ValidationError as error:
            problem = error.errors()[0]
            name = str(problem["loc"][0])
            if problem["type"] == "extra_forbidden":
                reason = f"there is no such argument. There are {', '.join(cls.model_fields)}."
            elif problem["type"] == "missing":
                reason = f"is missing. For example: {name}=models:/NAME@champion"
            else:
                reason = f"{problem['input']}: {problem['msg']}."
            raise ServiceError(f"{name}: {reason}") from None

    def settings(self) -> ServiceSettings:
        """Return the settings of the service. Raises ServiceError."""
        others = ("model", "tracking_uri", "token_file", "webhook_secret_file", "trust")
        flags = {name: value for name, value in self if name not in others}
        flags["max_replicas"] = max(self.max_replicas, self.min_replicas)
        return ServiceSettings.from_flags(**flags)
