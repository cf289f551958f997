"""The wire format of an answer of /v1/messages: Anthropic's events, and its whole message."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from penstock.serve.blocks import Block, Blocks, parts_of, whole
from penstock.serve.choice import Choice, Piece
from penstock.serve.generation import Generation
from penstock.serve.named_events import event

STOP_REASON: Final = {"length": "max_tokens", "stop": "end_turn", "tool_calls": "tool_use"}


class MessagesFormat:
    """A message whose content is blocks: thoughts, text, calls, in the order in which they came."""

    def __init__(self, id: str, model: str, prompt_tokens: int, *, thoughts: bool = True) -> None:
        """`thoughts` false: what the model thinks is not shown."""
        self._id, self._model, self._prompt_tokens, self._thoughts = id, model, prompt_tokens, thoughts
        self._blocks = Blocks(thoughts=thoughts)

    def opening(self, choice: Choice) -> bytes:
        """The message without content; its first block, where it can only be words."""
        usage = self._usage(choice)
        usage["output_tokens"] = min(usage["output_tokens"], 1)  # how many have come by now depends on the machine
        start = event("message_start", {"message": self._message([], None, None, usage)})
        return start + self._blocks.open(self) if choice.reader is None else start

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        """One event for each part; nothing while the text is held back."""
        return self._blocks.take(choice, parts_of(choice, piece), self)

    def around(self, choice: Choice) -> tuple[bytes, bytes] | None:
        if choice.reader is not None:
            return None
        before, after = _delta(0, {"type": "text_delta", "text": ""}).rsplit(b'""', 1)
        return before, after

    def begin(self, block: Block) -> bytes:
        """blocks.Writer."""
        return event("content_block_start", {"index": block.at, "content_block": _shown(block, None)})

    def more(self, block: Block, text: str) -> bytes:
        """blocks.Writer."""
        match block.kind:
            case "words":
                return _delta(block.at, {"type": "text_delta", "text": text})
            case "thoughts":
                return _delta(block.at, {"type": "thinking_delta", "thinking": text})
            case "call":
                return _delta(block.at, {"type": "input_json_delta", "partial_json": text})

    def end(self, block: Block, *, cut: bool) -> bytes:
        """blocks.Writer."""
        return event("content_block_stop", {"index": block.at})

    def closing(self, choice: Choice) -> bytes:
        """The end of the last block, then why the answer ended."""
        reason, stop = _ended(choice)
        delta = {
            "delta": {"stop_reason": reason, "stop_sequence": stop},
            "usage": {"output_tokens": len(choice.token_ids)},
        }  # fmt: skip
        return self._blocks.close(choice, self) + event("message_delta", delta)

    def ending(self, generation: Generation) -> bytes:
        return event("message_stop", {})

    def error_event(self, body: bytes) -> bytes:
        """An error after the first byte."""
        return event("error", msgspec.json.decode(body))

    def whole(self, generation: Generation) -> bytes:
        """As one JSON body."""
        choice = generation.choices[0]
        content = [_shown(block, block.text) for block in whole(choice, thoughts=self._thoughts)]
        return msgspec.json.encode(self._message(content, *_ended(choice), self._usage(choice)))

    def _message(
        self, content: list[dict[str, Any]], reason: str | None, stop: str | None, usage: dict[str, int]
    ) -> dict[str, Any]:
        return {
            "id": self._id, "type": "message", "role": "assistant", "model": self._model, "content": content,
            "stop_reason": reason, "stop_sequence": stop, "usage": usage,
        }  # fmt: skip

    def _usage(self, choice: Choice) -> dict[str, int]:
        """As Anthropic counts: what came from the cache is not among the input tokens."""
        return {
            "input_tokens": self._prompt_tokens - choice.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": choice.cached_tokens,
            "output_tokens": len(choice.token_ids),
        }


def _delta(at: int, delta: dict[str, str]) -> bytes:
    return event("content_block_delta", {"index": at, "delta": delta})


def _shown(block: Block, text: str | None) -> dict[str, Any]:
    """A block; `text` None: as it begins in a stream."""
    if block.call is not None:
        return {"type": "tool_use", "id": block.call.id, "name": block.call.name, "input": _object(text)}
    if block.kind == "thoughts":
        return {"type": "thinking", "thinking": text or "", "signature": ""}
    return {"type": "text", "text": text or ""}


def _object(arguments: str | None) -> msgspec.Raw:
    """Arguments as they are; those that an answer's end cut off are left out, as half an object is none."""
    try:
        msgspec.json.decode(arguments or "{}", type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return msgspec.Raw(b"{}")
    return msgspec.Raw((arguments or "{}").encode())


def _ended(choice: Choice) -> tuple[str, str | None]:
    if isinstance(choice.stop_reason, str):
        return "stop_sequence", choice.stop_reason
    if choice.finish_reason == "stop" and choice.reader is not None and choice.reader.calls:
        return "tool_use", None  # a tool that the client named, which the chat ends with "stop"
    return STOP_REASON[choice.finish_reason or "stop"], None
