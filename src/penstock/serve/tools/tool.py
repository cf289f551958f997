"""The tools of a request, checked, and the format in which a family of models calls them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

from penstock.serve.tools.source import Reading, Source

NO_ARGUMENTS: Final = {"type": "object", "properties": {}, "additionalProperties": False}
MAX_CALLS: Final = 16
"""In one answer that a grammar guides."""

Mark = Callable[[str], str]
"""A control token's spelling as a grammar writes it: the token, or its text where the model has no such token."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One function that the model may call."""

    name: str
    parameters: dict[str, Any]
    """A JSON schema of type object."""
    strict: bool
    given: dict[str, Any]
    """As the client sent it, for the template."""
    place: str
    """Of the parameters, in the body."""


class ToolFormat(Protocol):
    """How calls are written. One file of this package each."""

    name: ClassVar[str]
    markers: ClassVar[tuple[str, ...]]
    """Control tokens that the reader must see, though texts leave them out."""

    def matches(self, template: str, control_tokens: frozenset[str]) -> bool:
        """Whether a model with this chat template and these control tokens writes so."""

    def read(self, source: Source, known: frozenset[str]) -> Reading:
        """Take a text apart. `known`: the names of the tools."""

    def rules(self, tools: Sequence[Tool], mark: Mark, *, many: bool) -> str:
        """A grammar's rules: `start` is one call of one of `tools`, or `many`."""
