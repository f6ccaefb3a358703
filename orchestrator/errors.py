"""Define the errors that a user can cause or fix, as one tree.

    OrchestratorError
    ├── JobFileError        the job file is not valid; the message lists every problem
    ├── PlanError           the job is valid, but the data, the cluster or the workers cannot run it
    ├── ClusterError        the local cluster, a port, a process, a submission
    ├── CheckpointError     a checkpoint of another run or another version
    │   └── DamagedCheckpointError   its checksum does not match; the previous one is used
    ├── TrainingError       the run failed: a worker, a timeout, a loss that is not finite
    ├── TrackingError       MLflow cannot be reached or refuses
    ├── RegistryError       a model cannot be registered or found
    ├── ModelError          a user-defined network cannot be imported, built, loaded or called
    ├── SweepError          a sweep cannot continue, or does not exist
    ├── EvaluationError     results cannot be measured, read or compared
    ├── ExportError         a model cannot be exported, or the export computes something else
    ├── PhotoError          a file is not an image that can be restored
    │   └── ResultError      the file is valid, but the output of the model is not an image
    └── ServiceError        the service cannot start with these settings

A message names the value, its location, and what to do. Bugs are not in this tree: they print a traceback.
"""


class OrchestratorError(Exception):
    """Base class of the errors that the command line prints without a traceback."""


class JobFileError(OrchestratorError):
    """A job file with problems; the message lists them all, one line each, with file and line."""


class PlanError(OrchestratorError):
    """A valid job that this data or this cluster cannot run."""


class ClusterError(OrchestratorError):
    """The local cluster could not be started, reached or stopped."""


class CheckpointError(OrchestratorError):
    """A checkpoint of another run or of another version."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose checksum does not match."""


class TrainingError(OrchestratorError):
    """The run failed after it was launched."""


class TrackingError(OrchestratorError):
    """MLflow refused or could not be reached where it was required."""


class RegistryError(OrchestratorError):
    """A model could not be registered, resolved or loaded."""


class ModelError(OrchestratorError):
    """A user-defined network that cannot be imported, built, loaded with weights or called."""


class SweepError(OrchestratorError):
    """A sweep that cannot continue or does not exist."""


class EvaluationError(OrchestratorError):
    """Results that cannot be measured, read or compared."""


class ExportError(OrchestratorError):
    """A model that cannot be exported, or whose export computes something else."""


class PhotoError(OrchestratorError):
    """A file is not a photograph that can be read or written."""


class ResultError(PhotoError):
    """The output of a model for a photograph is not an image."""


class ServiceError(OrchestratorError):
    """The service cannot start: a flag, a port, a token, or a model that fails its smoke test."""
