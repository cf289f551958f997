"""The wire format of a chat answer: its chunks, and the whole of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.runtime import Tokenizer
from penstock.serve.choice import Choice, Piece
from penstock.serve.events import ChunkFrame, json_bytes, json_text
from penstock.serve.generation import Generation
from penstock.serve.logprobs import chat_logprobs, prompt_logprobs


class ChatFormat:
    """The chunks of a chat answer, and the whole of one.

    `prompt_ids` is set if token ids are to be returned, `prompt_top` if log-probabilities of the prompt are.
    """

    def __init__(
        self, frame: ChunkFrame, tokenizer: Tokenizer, *, choices: int, logprobs: bool,
        prompt_ids: Sequence[int] | None, prompt_top: int | None = None, timings: bool = False,
    ) -> None:  # fmt: skip
        self._prompt_top, self._timings = prompt_top, timings
        self._frame, self._tokenizer, self._logprobs, self._prompt_ids = frame, tokenizer, logprobs, prompt_ids
        self._content = [frame.prefix(index, b',"delta":{"content":') for index in range(choices)]
        self._plain_tail = b'},"logprobs":null,"finish_reason":null' + frame.close
        self._only_text = not logprobs and prompt_ids is None

    def opening(self, choice: Choice) -> bytes:
        """The role, with the first token and not before."""
        role = b',"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        fields: dict[str, Any] = {} if self._prompt_ids is None else {"prompt_token_ids": self._prompt_ids}
        if choice.index == 0:
            fields |= self._prompt_logprobs(choice)
        return self._frame.prefix(choice.index, role) + self._frame.close_with(fields)

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        """One event; nothing while the text is held back, unless ids or logprobs of the tokens were asked for."""
        if self._only_text:
            return self._content[choice.index] + json_text(piece.text) + self._plain_tail if piece.text else b""
        if not piece.tokens and not piece.text:
            return b""
        tail = b'},"logprobs":' + json_bytes(self._logprobs_of(piece)) + b',"finish_reason":null'
        if self._prompt_ids is not None:
            tail += b',"token_ids":' + json_bytes(piece.tokens)
        return self._content[choice.index] + json_text(piece.text) + tail + self._frame.close

    def around(self, choice: Choice) -> tuple[bytes, bytes] | None:
        return (self._content[choice.index], self._plain_tail) if self._only_text else None

    def closing(self, choice: Choice) -> bytes:
        """The finish chunk: an empty delta."""
        reasons = json_bytes(choice.finish_reason) + b',"stop_reason":' + json_bytes(choice.stop_reason)
        start = self._frame.prefix(choice.index, b',"delta":{},"logprobs":null,"finish_reason":')
        timings = {"timings": choice.shown_timings()} if self._timings else {}
        return start + reasons + self._frame.close_with(timings)

    def ending(self, generation: Generation) -> bytes:
        return self._frame.ending(generation.usage())

    def whole(self, generation: Generation) -> bytes:
        fields: dict[str, Any] = {"choices": [self._choice(choice) for choice in generation.choices]}
        if self._prompt_ids is not None:
            fields["prompt_token_ids"] = self._prompt_ids
        fields |= self._prompt_logprobs(generation.choices[0])
        if self._timings:
            fields["timings"] = generation.slowest().shown_timings()
        return self._frame.whole(fields | {"usage": generation.usage()})

    def _choice(self, choice: Choice) -> dict[str, Any]:
        shown = {
            "index": choice.index,
            "message": self._message(choice),
            "logprobs": self._logprobs_of(Piece("", choice.token_ids, choice.logprobs)),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        return shown if self._prompt_ids is None else shown | {"token_ids": choice.token_ids}

    def _message(self, choice: Choice) -> dict[str, Any]:
        return {"role": "assistant", "content": choice.text, "refusal": None}

    def _prompt_logprobs(self, choice: Choice) -> dict[str, Any]:
        if self._prompt_top is None or choice.prompt_logprobs is None:
            return {}
        shown = prompt_logprobs(self._tokenizer, choice.request.prompt, choice.prompt_logprobs, self._prompt_top)
        return {"prompt_logprobs": shown}

    def _logprobs_of(self, piece: Piece) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        return {"content": chat_logprobs(self._tokenizer, piece.tokens, piece.logprobs), "refusal": None}
