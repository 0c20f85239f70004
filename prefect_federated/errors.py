"""Every error this project raises on purpose.

    FederatedError
    ├── ConfigurationError          what a person wrote or set is wrong
    │   ├── FederationFileError     federation.yaml: the line, and what is wrong there
    │   ├── KitError                a startup kit is incomplete, expired or not readable
    │   ├── ExecutorNotFound        an executor's import path does not lead to an executor
    │   ├── DatasetFileError        a site's datasets.yaml: the line, and what is wrong there
    │   ├── DatasetNotFound         a site has no dataset, split or column of that name
    │   ├── StatisticsNotFound      there is no such result of statistics, or not here
    │   └── SitesDisagree           sites' tables differ where a model needs them alike
    ├── DatasetUnreadable           a dataset's file, database or function gives no table
    │   └── MixedTypes              a column holds values that are not of its kind
    ├── LedgerDamaged               a site's record of released statistics is not as it was written
    ├── StatisticsFailed            a site's statistics failed with what only the site may read
    ├── ConnectionFailed            the other side cannot be reached, or TLS failed
    ├── ProtocolError               the bytes that arrived are not a message of ours
    ├── AttachRefused               the job's endpoint does not let this site in
    ├── StaleController             a newer attempt of the same job has taken over
    └── JobError                    the job cannot go on
        ├── NotEnoughSites          fewer sites than the job asks for
        ├── QuorumNotReached        too few sites answered a call in time
        ├── UpdateRejected          a site's update does not fit the global model
        ├── ModelUndetermined       the sites' data determine no single best model
        ├── FilterFailed            a filter raised, or gave no message back
        ├── SnapshotCorrupt         a snapshot is not what was written
        ├── SnapshotFailed          a snapshot could not be written
        ├── OutOfSpace              no room for a tensor, in memory or on the disk for tensors
        └── JobEnded                the job is over: completed, cancelled or failed

Each carries an `exit_code` for the command line, where the message is printed without a traceback.
"""


class FederatedError(Exception):
    """Base of all errors of prefect-federated."""

    exit_code = 1


class ConfigurationError(FederatedError):
    """What a person wrote or set is wrong; the message says where and what to write instead."""

    exit_code = 2


class FederationFileError(ConfigurationError):
    """A federation file does not say what it must; the message begins with `file:line`."""


class KitError(ConfigurationError):
    """A startup kit is incomplete, expired, not readable or for another participant."""

    exit_code = 3


class ExecutorNotFound(ConfigurationError):
    """An executor's import path does not lead to an executor."""


class DatasetFileError(ConfigurationError):
    """A site's `datasets.yaml` does not say what it must; the message begins with `file:line`."""


class DatasetNotFound(ConfigurationError):
    """A site has no dataset, split or usable column of that name; the message has near names."""


class StatisticsNotFound(ConfigurationError):
    """There is no such result of statistics, or it cannot be read here; says what to do."""


class SitesDisagree(ConfigurationError):
    """Sites' tables differ where a model needs them alike; says which site has what."""


class DatasetUnreadable(FederatedError):
    """A dataset's file, database or function gives no table; no message holds a row's value."""


class MixedTypes(DatasetUnreadable):
    """Values of `column` are not of the column's kind; the message says in which row."""

    def __init__(self, message: str, column: str) -> None:
        super().__init__(message)
        self.column = column


class LedgerDamaged(FederatedError):
    """A site's record of what it released and spent is damaged or gone; it releases nothing."""


class StatisticsFailed(FederatedError):
    """A site could not compute statistics; why is in its own log only, since it may show rows."""


class ConnectionFailed(FederatedError):
    """The other side cannot be reached, or TLS failed; the message says which and why."""

    exit_code = 4


class ProtocolError(FederatedError):
    """The bytes that arrived are not a message of ours, or exceed a limit."""


class AttachRefused(FederatedError):
    """The job's endpoint does not let this site in; the message is the controller's reason."""


class StaleController(FederatedError):
    """A newer attempt of the same job has taken over; this one must stop without a result."""


class JobError(FederatedError):
    """A job cannot go on."""


class NotEnoughSites(JobError):
    """Fewer sites than the job asks for; the message names those that are missing, and why."""


class QuorumNotReached(JobError):
    """Too few sites answered a call in time; the message names each missing site and its reason."""


class UpdateRejected(JobError):
    """A site's update does not fit the global model (names, shapes, dtypes), or is not finite."""


class ModelUndetermined(JobError):
    """The data determine no single best model; the message names columns, and what to change."""


class FilterFailed(JobError):
    """A filter raised, or gave no message back; the message names the filter and the point."""


class SnapshotCorrupt(JobError):
    """A snapshot's bytes are not those that were written."""


class SnapshotFailed(JobError):
    """A snapshot could not be written; the one before it is still there."""


class OutOfSpace(JobError, MemoryError):
    """There is no room for a tensor: no memory, or the disk that holds tensors is full."""


class JobEnded(JobError):
    """The job is over for this site; `outcome` is "completed", "cancelled" or "failed"."""

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(f"the job is {outcome}: {reason}")
        self.outcome = outcome
