"""`stream_options.continuous_usage_stats`, as vLLM and SGLang have it: each chunk tells the usage so far.

The formats write `"usage":null` at the end of each chunk of a stream whose usage was asked for. Here it becomes the
numbers; streams that do not ask pay nothing for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from penstock.serve.choice import Choice, Piece
from penstock.serve.events import json_bytes

if TYPE_CHECKING:
    from penstock.serve.answer import Format
    from penstock.serve.generation import Generation
    from penstock.serve.schema import StreamOptions

_NONE: Final = b'"usage":null}\n\n'
"""The end of an event. No text of an answer holds these bytes: in JSON its quotes and line breaks are escaped."""


def with_usage(form: Format, generation: Generation, options: StreamOptions | None) -> Format:
    """`form`, with the usage in each chunk if `options` ask for that."""
    wanted = options is not None and options.include_usage and options.continuous_usage_stats
    return ContinuousUsage(form, generation) if wanted else form


class ContinuousUsage:
    """A format whose chunks have their usage filled in."""

    def __init__(self, form: Format, generation: Generation) -> None:
        self._form, self._generation = form, generation

    def opening(self, choice: Choice) -> bytes:
        return self._filled(self._form.opening(choice))

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        return self._filled(self._form.piece(choice, piece))

    def around(self, choice: Choice) -> None:
        return

    def closing(self, choice: Choice) -> bytes:
        return self._filled(self._form.closing(choice))

    def ending(self, generation: Generation) -> bytes:
        return self._form.ending(generation)

    def whole(self, generation: Generation) -> bytes:
        return self._form.whole(generation)

    def _filled(self, events: bytes) -> bytes:
        if not events:
            return events
        return events.replace(_NONE, b'"usage":' + json_bytes(self._generation.usage()) + b"}\n\n")
