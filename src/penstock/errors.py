"""Every error Penstock raises on purpose, as one tree.

PenstockError                 exit code 1, HTTP 500
├── BadInput                  exit code 2, HTTP 400: names field, value, reason, remedy
│   ├── InvalidRequest
│   ├── InvalidDeployment
│   ├── UnsupportedModel
│   └── UnsupportedAdapter
├── RequestFailed             one request ended without a result; no other is touched
├── Overloaded                HTTP 429, with the seconds to wait and the numbers behind them
├── DeadlinePassed            HTTP 408
├── Unavailable               HTTP 503, with the seconds to wait
└── ProtocolError             a caller or an executor broke a contract: our own mistake
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class PenstockError(Exception):
    """Base of all. `status` is the HTTP status, `exit_code` what the command line ends with."""

    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1


class BadInput(PenstockError):
    """The caller's fault: says which field, what it held, why that cannot be, and what would work."""

    status = 400
    exit_code = 2

    def __init__(self, *, field: str, value: object, why: str, remedy: str) -> None:
        self.field, self.value, self.why, self.remedy = field, value, why, remedy
        shown = repr(value)
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        super().__init__(f"{field} = {shown}: {why}. Remedy: {remedy}")


class InvalidRequest(BadInput):
    """A request that cannot be run as asked. `code` is the machine-readable cause in the HTTP answer."""

    def __init__(self, *, field: str, value: object, why: str, remedy: str, code: str = "invalid_value") -> None:
        super().__init__(field=field, value=value, why=why, remedy=remedy)
        self.code = code


class InvalidDeployment(BadInput):
    """The deployment file, or a flag that stands for one of its keys."""


class UnsupportedModel(BadInput):
    """A checkpoint this engine has no implementation for."""


class UnsupportedAdapter(BadInput):
    """An adapter that this engine cannot attach to the model, or that does not fit into the room for adapters."""


class RequestFailed(PenstockError):
    """A request that was taken and cannot be finished. It fails alone."""


class Overloaded(PenstockError):
    """The bounded queue is full, a time cannot be kept, or a limit was reached; nothing was taken.

    `code` is the machine-readable cause in the HTTP answer, `details` the numbers in it.
    """

    status = 429

    def __init__(
        self, message: str, *, retry_after_s: float, code: str = "server_overloaded",
        details: Mapping[str, object] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.retry_after_s, self.code, self.details = retry_after_s, code, details


class DeadlinePassed(PenstockError):
    """The client's own deadline passed while its request waited for a first token."""

    status = 408

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(PenstockError):
    """Starting, draining, or the worker is being restarted."""

    status = 503

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ProtocolError(PenstockError):
    """A step committed twice or out of order, a sequence nobody submitted: a bug, said loudly."""
