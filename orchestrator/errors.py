"""Every error that a user can cause or cure, as one tree.

    OrchestratorError
    ├── JobFileError        the job file does not say something that can be run; carries every problem at once
    ├── PlanError           the job is well formed but cannot be done: data, cluster or workers do not allow it
    ├── ClusterError        the local cluster, a port, a process; submission
    ├── CheckpointError     a checkpoint of another run or another version
    │   └── DamagedCheckpointError   bytes that are not what was written; the one before it serves
    ├── TrainingError       the run itself failed: a worker, a deadline, a loss that is not finite
    ├── TrackingError       MLflow cannot be reached or refuses
    ├── RegistryError       a model cannot be registered or found
    ├── ModelError          a user's own network cannot be imported, built, filled or called
    ├── SweepError          a sweep cannot go on, or there is none of that name
    ├── EvaluationError     results cannot be measured, read or compared
    ├── ExportError         a model cannot be written in another format, or is not the same there
    ├── PhotoError          a file is not an image that can be restored
    │   └── ResultError      the file is good, what the model made of it is no image
    └── ServiceError        the service cannot start as it was asked to

A message says what value, where it stands, and what to do. Bugs are not in this tree: they stay tracebacks.
"""


class OrchestratorError(Exception):
    """Root of everything that the command line prints without a traceback."""


class JobFileError(OrchestratorError):
    """A job file with problems; the message lists them all, one line each, with file and line."""


class PlanError(OrchestratorError):
    """A well-formed job that this data or this cluster does not allow."""


class ClusterError(OrchestratorError):
    """The local cluster could not be started, reached or stopped."""


class CheckpointError(OrchestratorError):
    """A checkpoint of another run or of another version."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose bytes are not what was written."""


class TrainingError(OrchestratorError):
    """The run failed after it was launched."""


class TrackingError(OrchestratorError):
    """MLflow refused or could not be reached where it was required."""


class RegistryError(OrchestratorError):
    """A model could not be registered, resolved or loaded."""


class ModelError(OrchestratorError):
    """A network of the user's own that cannot be imported, built, filled with weights or called."""


class SweepError(OrchestratorError):
    """A sweep that cannot go on, or that is not there."""


class EvaluationError(OrchestratorError):
    """Results that cannot be measured, read, or put into one table."""


class ExportError(OrchestratorError):
    """A model cannot be written in another format, or computes something else there."""


class PhotoError(OrchestratorError):
    """A file is not a photograph that can be read or written."""


class ResultError(PhotoError):
    """What the model made of a photograph is no image."""


class ServiceError(OrchestratorError):
    """The service cannot start: a flag, a port, a token, a model that fails its trial."""
