"""Everything that can go wrong and that a user can cause or mend, in one tree.

ClipBackendError
├── SettingsError               a setting is missing or wrong
├── RequestError (400)          a request that cannot be understood
│   ├── AuthenticationError (401)
│   ├── ForbiddenError (403)
│   ├── NotFoundError (404)
│   ├── TooLargeError (413)
│   └── TooManyRequestsError (429)
├── LabelingConfigError (400)   a labeling config that cannot be read
├── TaskError                   one task that cannot be predicted
│   └── ImageError              its picture cannot be had
│       └── ImageHostError      IMAGE_HOSTS does not allow where it is
├── LabelStudioError (502)      Label Studio refused
│   └── LabelStudioUnreachableError
├── EncoderError (503)          CLIP cannot be loaded
├── ClassifierError             CLIPImageClassifier cannot do what it was asked
├── ModelError                  an exported model that cannot be written, read or run
├── DatasetError                a labelled set that cannot be read or made
├── BackupError                 a backup that cannot be written or restored
├── MigrationError              a database that cannot be moved to another
├── DatabaseError (503)         the database cannot be used
└── QueueError (503)            Redis cannot be used

Each message says what is wrong and what to do. Anything else that is raised is a bug.
"""

from __future__ import annotations

from enum import Enum

# What a process returns when only a person can mend it (sysexits.h, EX_CONFIG).
NOT_CONFIGURED = 78


class ClipBackendError(Exception):
    """Base of all errors that a user can cause or mend; `status` is its HTTP status."""

    status = 500


class SettingsError(ClipBackendError):
    """A setting is missing or wrong; the message names it."""


class RequestError(ClipBackendError):
    """A request that cannot be understood."""

    status = 400


class AuthenticationError(RequestError):
    """Credentials are missing or wrong."""

    status = 401


class ForbiddenError(RequestError):
    """What another site's page may not have done."""

    status = 403


class NotFoundError(RequestError):
    """What was asked for does not exist."""

    status = 404


class TooLargeError(RequestError):
    """A body that this process cannot hold."""

    status = 413


class TooManyRequestsError(RequestError):
    """A request that has to be sent again, `retry_after` seconds later."""

    status = 429

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class LabelingConfigError(ClipBackendError):
    """A labeling config that cannot be read."""

    status = 400


class TaskError(ClipBackendError):
    """One task that cannot be predicted; it costs that task only."""

    status = 400


class ImageFault(str, Enum):
    """Why a picture cannot be had, in a few words that can be counted."""

    SOURCE = "source"  # the task names nothing that can be fetched
    HOST = "host"  # IMAGE_HOSTS does not allow it
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    REFUSED = "refused"  # 401 or 403
    MISSING = "missing"  # 404 or 410
    ANSWER = "answer"  # any other answer that is no picture's
    TOO_LARGE = "too_large"
    BROKEN = "broken"  # what came is no picture


class ImageError(TaskError):
    """A task's picture cannot be fetched or decoded.

    `permanent` tells a picture that is broken or gone from a fetch that may succeed later.
    """

    def __init__(
        self, message: str, *, permanent: bool = True, fault: ImageFault = ImageFault.BROKEN
    ) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.fault = fault


class ImageHostError(ImageError):
    """IMAGE_HOSTS does not allow the host of a task's picture; a changed setting mends that."""

    def __init__(self, message: str) -> None:
        super().__init__(message, permanent=False, fault=ImageFault.HOST)


class LabelStudioError(ClipBackendError):
    """Label Studio answered with an error."""

    status = 502

    def __init__(self, message: str, *, label_studio_status: int | None = None) -> None:
        super().__init__(message)
        self.label_studio_status = label_studio_status


class LabelStudioUnreachableError(LabelStudioError):
    """Label Studio did not answer, or not now; `retry_after` is when it said to ask again, in s."""

    def __init__(
        self,
        message: str,
        *,
        label_studio_status: int | None = None,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message, label_studio_status=label_studio_status)
        self.retry_after = retry_after


class EncoderError(ClipBackendError):
    """CLIP cannot be loaded."""

    status = 503


class ClassifierError(ClipBackendError, ValueError):
    """What `CLIPImageClassifier` was given cannot be used; a ValueError, as in scikit-learn."""


class ModelError(ClipBackendError):
    """An exported model that cannot be written, read or run."""


class DatasetError(ClipBackendError):
    """A labelled set that cannot be read or made."""


class BackupError(ClipBackendError):
    """A backup that cannot be written or restored."""


class MigrationError(ClipBackendError):
    """A database that cannot be moved to another."""


class DatabaseError(ClipBackendError):
    """The database cannot be used."""

    status = 503


class QueueError(ClipBackendError):
    """Redis cannot be used."""

    status = 503
