"""An error that crosses from the worker to the front end stays the error it was: same class, same fields."""

from __future__ import annotations

from penstock.errors import (
    BadInput,
    InvalidDeployment,
    InvalidRequest,
    PenstockError,
    UnsupportedAdapter,
    UnsupportedModel,
)
from penstock.runtime.wire import Failure

_BAD_INPUT: dict[str, type[BadInput]] = {
    kind.__name__: kind for kind in (BadInput, InvalidDeployment, InvalidRequest, UnsupportedAdapter, UnsupportedModel)
}


def describe(error: BaseException) -> Failure:
    """As a message. An error that is not ours keeps its class's name in the text."""
    if isinstance(error, BadInput):
        value = error.value if isinstance(error.value, str) else repr(error.value)
        return Failure(type(error).__name__, str(error), error.field, value[:1_000], error.why, error.remedy)
    if isinstance(error, PenstockError):
        return Failure(type(error).__name__, str(error))
    return Failure(type(error).__name__, f"{type(error).__name__}: {error}")


def revive(failure: Failure) -> PenstockError:
    """As an error again: a BadInput of the same class, or a PenstockError with the message."""
    kind = _BAD_INPUT.get(failure.kind)
    if kind is None:
        return PenstockError(failure.message)
    return kind(field=failure.field, value=failure.value, why=failure.why, remedy=failure.remedy)
