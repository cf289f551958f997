"""What an answer's text is made of, in the order in which it comes."""

from __future__ import annotations

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
