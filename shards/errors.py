"""Every error of this package that a user can cause or cure, as one tree.

    ShardsError
    ├── StoreError               a store cannot be reached, read or written as asked
    │   ├── UnreachableStoreError    it did not answer; it may be back later
    │   ├── MissingObjectError       it answers, and it has no such object
    │   └── ObjectExistsError        the key holds other bytes
    ├── ManifestError            a manifest is missing, of another version, or lacks what was asked of it
    ├── CorruptObjectError       bytes that are not what their manifest or header says
    ├── PackError                raw data that cannot become shards
    ├── MixtureError             data and mixture that do not make a training stream
    └── LedgerError              what a run wrote of its samples has a hole or contradicts itself

A message says what value, where it stands, and what to do. Bugs are not in this tree: they stay tracebacks.
"""


class ShardsError(Exception):
    """Root of everything that this package raises for a user to read."""


class StoreError(ShardsError):
    """A store cannot be reached, read or written as asked."""


class UnreachableStoreError(StoreError):
    """The store did not answer, however often it was asked; it may be back later."""


class MissingObjectError(StoreError):
    """The store answers, and it has no such object."""


class ObjectExistsError(StoreError):
    """The key holds other bytes, and objects are written once."""


class ManifestError(ShardsError):
    """A manifest is missing, of another version, or does not hold what was asked of it."""


class CorruptObjectError(ShardsError):
    """Bytes that are not what their manifest or header says."""


class PackError(ShardsError):
    """Raw data that cannot become shards; nothing was published."""


class MixtureError(ShardsError):
    """Data and mixture that do not make a training stream."""


class LedgerError(ShardsError):
    """What a run wrote down of its samples has a hole or contradicts itself."""
