"""Every refusal in one shape: {"error": {"message", "type", "param", "code"}}, a status, and when to come back. A 429
has the numbers behind it as `details` beside those.

`wire` turns any exception into that shape. Errors raised on purpose are the tree of `penstock.errors` plus `Refusal`,
for causes that only HTTP knows (a wrong key, a body that is too large). Anything else is our own mistake: it is logged
with its traceback, and the client learns only the request id.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import msgspec

from penstock.errors import BadInput, DeadlinePassed, InvalidRequest, Overloaded, PenstockError, Unavailable

log = logging.getLogger("penstock.serve")

TYPE_BY_STATUS = {
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}  # all others: invalid_request_error


class Refusal(PenstockError):
    """A refusal whose status is decided where it is raised."""

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None, allow: str = "") -> None:
        super().__init__(message)
        self.http_status, self.code, self.param, self.allow = status, code, param, allow


def invalid(field: str, value: object, why: str, remedy: str, code: str = "invalid_value") -> InvalidRequest:
    """An error about one field of a body."""
    return InvalidRequest(field=field, value=value, why=why, remedy=remedy, code=code)


@dataclass(frozen=True, slots=True)
class WireError:
    """An error as it leaves: `reason` is the label it is counted under."""

    status: int
    reason: str
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]


def wire(error: BaseException, request_id: str) -> WireError:
    """The answer to `error`: status, JSON body, headers. Logs what nobody raised on purpose, under `request_id`."""
    status, code, param, message = _facts(error, request_id)
    headers = [(b"content-type", b"application/json")]
    if isinstance(error, Overloaded | Unavailable | DeadlinePassed):
        headers += retry_headers(error.retry_after_s)
        if "Remedy: " not in message:
            message = f"{message.rstrip('.')}. Remedy: come back in {max(error.retry_after_s, 0.01):.2f} s"
    if isinstance(error, Refusal) and error.allow:
        headers.append((b"allow", error.allow.encode()))
    if status == 413:
        headers.append((b"connection", b"close"))  # the rest of the body may still be on its way
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    kind = TYPE_BY_STATUS.get(status, "invalid_request_error")
    detail: dict[str, object] = {"message": message, "type": kind, "param": param, "code": code}
    if isinstance(error, Overloaded) and error.details is not None:
        detail["details"] = error.details
    return WireError(status, code, msgspec.json.encode({"error": detail}), tuple(headers))


def retry_headers(seconds: float) -> list[tuple[bytes, bytes]]:
    """Both forms of the same wait. Official clients prefer the milliseconds; the seconds are rounded up."""
    milliseconds = max(1, math.ceil(seconds * 1000))
    return [
        (b"retry-after", b"%d" % math.ceil(milliseconds / 1000)),
        (b"retry-after-ms", b"%d" % milliseconds),
    ]


def _facts(error: BaseException, request_id: str) -> tuple[int, str, str | None, str]:
    match error:
        case Refusal():
            return error.http_status, error.code, error.param, str(error)
        case InvalidRequest():
            return 400, error.code, error.field, _printable(str(error))
        case BadInput():
            return 400, "invalid_value", error.field, _printable(str(error))
        case Overloaded():
            return 429, error.code, None, str(error)
        case DeadlinePassed():
            return 408, "deadline_passed", None, str(error)
        case Unavailable():
            return 503, "service_unavailable", None, str(error)
        case PenstockError():
            log.error("request_id=%s failed: %s", request_id, error, extra={"request_id": request_id})
            return 500, "request_failed", None, _printable(str(error))
        case _:
            log.error(
                "request_id=%s unexpected error while answering", request_id, exc_info=error,
                extra={"request_id": request_id},
            )  # fmt: skip
            return 500, "internal_error", None, "internal error; the server's log has the cause under this x-request-id"


def _printable(text: str) -> str:
    """A message may quote what the client sent; half a surrogate pair in it must not break the answer."""
    return text.encode("utf-8", "replace").decode()
