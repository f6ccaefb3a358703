"""All errors of this package that a user can cause or fix.

A message names the value, its location, and the remedy. Bugs are not ShardsErrors: they keep their tracebacks.
"""

from collections.abc import Sequence


class ShardsError(Exception):
    """Base class of the errors of this package that are shown to users."""


class StoreError(ShardsError):
    """A failed request to a store."""


class UnreachableStoreError(StoreError):
    """A store that did not answer after all attempts; a later attempt may succeed."""


class MissingObjectError(StoreError):
    """An object that the store does not have."""


class ObjectExistsError(StoreError):
    """A write to a key that already holds other bytes; objects are written once."""


class PathError(ShardsError):
    """A path that cannot be resolved, or a folder that cannot be listed."""


class ManifestError(ShardsError):
    """A manifest that is missing, unreadable, or lacks what was requested."""


class CorruptObjectError(ShardsError):
    """Bytes that contradict their manifest or header."""


class PackError(ShardsError):
    """Raw data that cannot be packed; nothing was published."""


class ToolError(ShardsError):
    """A program that packing needs and that is missing on this machine or was killed."""


class MixtureError(ShardsError):
    """A mixture or schedule that is impossible with the data."""


class PipelineError(ShardsError):
    """Pipelines of degradations that cannot be read, with every problem: its key and what to do."""

    def __init__(self, problems: Sequence[tuple[tuple[str, ...], str]]) -> None:
        super().__init__("\n".join(f"{'.'.join(key)} {message}" for key, message in problems))
        self.problems = tuple(problems)


class DegradeError(ShardsError):
    """An image that a pipeline cannot degrade."""


class ReaderError(ShardsError):
    """Reader processes that hang or die again and again."""


class LedgerError(ShardsError):
    """A sample ledger that has a gap or contradicts itself."""
