"""What an answer's text is made of, in the order in which it comes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """Words for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Words of the model to itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """The model calls a tool; its arguments follow."""

    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the arguments of the call begun last. All pieces of a call, joined, are one JSON object."""

    text: str


Part = Text | Reasoning | CallBegin | CallArguments


def joined(parts: Iterable[Part]) -> list[Part]:
    """Neighbours of one kind as one: fewer events where several tokens came at once."""
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, CallBegin) or isinstance(last, CallBegin) or last is None or type(part) is not type(last):
            found.append(part)
        else:
            found[-1] = type(part)(last.text + part.text)
    return found
