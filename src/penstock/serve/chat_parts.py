"""A chat answer with more in it than words: reasoning and tool calls, in the message and in the deltas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.runtime import Tokenizer
from penstock.serve.chat_format import ChatFormat
from penstock.serve.choice import Choice, Piece
from penstock.serve.events import ChunkFrame, json_bytes, json_text
from penstock.serve.reading import Reader
from penstock.serve.tools.parts import CallArguments, CallBegin, Part, Reasoning, Text, joined


class ChatPartsFormat(ChatFormat):
    """One event per part. Each choice has a reader."""

    def __init__(
        self, frame: ChunkFrame, tokenizer: Tokenizer, *, choices: int, logprobs: bool,
        prompt_ids: Sequence[int] | None, prompt_top: int | None = None, timings: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            frame, tokenizer, choices=choices, logprobs=logprobs, prompt_ids=prompt_ids, prompt_top=prompt_top,
            timings=timings,
        )  # fmt: skip
        self._begun: dict[int, int] = {}
        """By choice: the call that was begun last."""

    def opening(self, choice: Choice) -> bytes:
        """Without content: whether there will be any is not known."""
        return super().opening(choice).replace(b'"content":""', b'"content":null', 1)

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        events: list[bytes] = []
        for part in joined(piece.parts):
            events.append(self._event(choice, self._delta(choice, part), None if events else piece))
        if not events and not self._only_text and piece.tokens:
            events.append(self._event(choice, b"{}", piece))
        return b"".join(events)

    def around(self, choice: Choice) -> tuple[bytes, bytes] | None:
        return None

    def _event(self, choice: Choice, delta: bytes, piece: Piece | None) -> bytes:
        """The log-probabilities and ids of a piece go with its first part."""
        shown = self._logprobs_of(piece) if piece is not None else None
        tail = b',"logprobs":' + json_bytes(shown) + b',"finish_reason":null'
        if piece is not None and self._prompt_ids is not None:
            tail += b',"token_ids":' + json_bytes(piece.tokens)
        return self._frame.prefix(choice.index, b',"delta":') + delta + tail + self._frame.close

    def _delta(self, choice: Choice, part: Part) -> bytes:
        match part:
            case Text():
                return b'{"content":' + json_text(part.text) + b"}"
            case Reasoning():
                text = json_text(part.text)
                return b'{"reasoning_content":' + text + b',"reasoning":' + text + b"}"
            case CallBegin():
                number = self._begun.get(choice.index, -1) + 1
                self._begun[choice.index] = number
                call = _reader(choice).calls[number]
                function = {"name": call.name, "arguments": ""}
                shown = {"index": number, "id": call.id, "type": "function", "function": function}
                return b'{"tool_calls":[' + json_bytes(shown) + b"]}"
            case CallArguments():
                head = b'{"tool_calls":[{"index":%d,"function":{"arguments":' % self._begun[choice.index]
                return head + json_text(part.text) + b"}}]}"

    def _message(self, choice: Choice) -> dict[str, Any]:
        reader = _reader(choice)
        words, thoughts = "".join(reader.words), "".join(reader.thoughts)
        message: dict[str, Any] = {"role": "assistant", "content": words or (None if reader.calls or thoughts else "")}
        if reader.thinks:
            message |= {"reasoning_content": thoughts or None, "reasoning": thoughts or None}
        if reader.calls:
            message["tool_calls"] = [
                {
                    "id": call.id, "type": "function",
                    "function": {"name": call.name, "arguments": "".join(call.arguments)},
                }
                for call in reader.calls
            ]  # fmt: skip
        return message | {"refusal": None}


def _reader(choice: Choice) -> Reader:
    assert choice.reader is not None, "an answer in parts without a reader"
    return choice.reader
