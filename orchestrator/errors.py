"""Define the errors that a user can cause or fix, as one tree.

A message names the value, its location, and what to do. Bugs are not in this tree: they print a traceback.
"""

from __future__ import annotations

_NO_MEMORY = ("out of memory", "allocate memory", "bad_alloc", "low on memory")
"""Words of torch, the kernel, the C++ library and Ray."""
TRAINING_MEMORY_ADVICE = (
    "What a run has checkpointed stays: submit it again to continue. It needs less memory with more workers, or with "
    "train.activation_checkpointing=all; both give the same numbers."
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of any library says that memory, or that of a GPU, is exhausted."""
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in _NO_MEMORY)


class OrchestratorError(Exception):
    """Base class of the errors that the command line prints without a traceback."""


class JobFileError(OrchestratorError):
    """A job file with problems; the message lists them all, one line each, with file and line."""


class PlanError(OrchestratorError):
    """A valid job that the data, the cluster or the workers cannot run."""


class ClusterError(OrchestratorError):
    """The local cluster, a port, a process or a submission does not work."""


class OwnedError(OrchestratorError):
    """A run or sweep that another live process owns."""


class CheckpointError(OrchestratorError):
    """A checkpoint of another run or of another version."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose checksum does not match; the one before it is used."""


class DamagedResultError(OrchestratorError):
    """A `result.json` that is not the result of a run; a resubmission computes it again."""


class TrainingError(OrchestratorError):
    """A run that failed after its launch: a worker, a timeout, a loss that is not finite."""


class SupersededError(TrainingError):
    """Workers that still run after others have replaced them; they must not write."""


class NewOwnerError(SupersededError):
    """Workers of a driver that still run after another driver has taken over."""


class TrackingError(OrchestratorError):
    """MLflow refused or could not be reached where it was required."""


class RegistryError(OrchestratorError):
    """A model could not be registered, resolved or loaded."""


class RegistryUnavailableError(RegistryError):
    """MLflow failed or could not be reached; what was asked of the registry may be repeated later."""


class ModelError(OrchestratorError):
    """A user-defined network that cannot be imported, built, loaded with weights or called."""


class UntrustedCodeError(ModelError):
    """A model that brings code of its own, to which nobody has consented."""


class SweepError(OrchestratorError):
    """A sweep that cannot continue or does not exist."""


class EvaluationError(OrchestratorError):
    """Results that cannot be measured, read or compared."""


class ExportError(OrchestratorError):
    """A model that cannot be exported, or whose export computes something else."""


class OutputError(OrchestratorError):
    """A file that cannot be written where the user wants it."""


class PhotoError(OrchestratorError):
    """A file is not a photograph that can be read or written."""


class UnsupportedPhotoError(PhotoError):
    """A file of a format that is not read."""


class ResultError(PhotoError):
    """The output of a model for a photograph is not an image."""


class ServiceError(OrchestratorError):
    """The service cannot start: a flag, a port, a token, or a model that fails its smoke test."""
