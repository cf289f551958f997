"""The wire format of an answer of /v1/responses: its numbered events, and the whole of it."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from penstock.serve.blocks import Block, Blocks, parts_of, whole
from penstock.serve.choice import Choice, Piece
from penstock.serve.front import Call
from penstock.serve.generation import Generation
from penstock.serve.named_events import event
from penstock.serve.responses_body import ResponsesBody

_ID: Final = {"words": "msg", "thoughts": "rs", "call": "fc"}
_TEXT: Final = {"words": "output_text", "thoughts": "reasoning_text"}
_TOOL: Final = {"type": "function", "description": None, "parameters": None, "strict": False}


class ResponsesFormat:
    """A response whose output is items: reasoning, messages, calls, in the order in which they came."""

    def __init__(self, call: Call, body: ResponsesBody, model: str, generation: Generation) -> None:
        self._call, self._body, self._model, self._generation = call, body, model, generation
        self._number = 0
        self._blocks = Blocks()
        sampling = generation.choices[0].request.sampling
        self._used = {"temperature": sampling.temperature, "top_p": sampling.top_p}

    def opening(self, choice: Choice) -> bytes:
        """The response; its first item, where it can only be a message."""
        bare = {"response": self._response("in_progress", [])}
        start = self._event("response.created", bare) + self._event("response.in_progress", bare)
        return start + self._blocks.open(self) if choice.reader is None else start

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        """One event for each part; nothing while the text is held back."""
        return self._blocks.take(choice, parts_of(choice, piece), self)

    def around(self, choice: Choice) -> tuple[bytes, bytes] | None:
        return None  # each event has a number of its own

    def begin(self, block: Block) -> bytes:
        """blocks.Writer."""
        added = {"output_index": block.at, "item": self._item(block, "in_progress", "")}
        start = self._event("response.output_item.added", added)
        if block.kind == "call":
            return start
        return start + self._event("response.content_part.added", self._where(block) | {"part": _part(block, "")})

    def more(self, block: Block, text: str) -> bytes:
        """blocks.Writer."""
        if block.kind == "call":
            where = {"item_id": self._id(block), "output_index": block.at}
            return self._event("response.function_call_arguments.delta", where | {"delta": text})
        logprobs: dict[str, Any] = {"logprobs": []} if block.kind == "words" else {}
        return self._event(f"response.{_TEXT[block.kind]}.delta", self._where(block) | {"delta": text} | logprobs)

    def end(self, block: Block, *, cut: bool) -> bytes:
        """blocks.Writer."""
        text = block.text
        if block.call is not None:
            where = {"item_id": self._id(block), "output_index": block.at}
            told = where | {"name": block.call.name, "arguments": text}
            done = self._event("response.function_call_arguments.done", told)
        else:
            logprobs: dict[str, Any] = {"logprobs": []} if block.kind == "words" else {}
            done = self._event(f"response.{_TEXT[block.kind]}.done", self._where(block) | {"text": text} | logprobs)
            done += self._event("response.content_part.done", self._where(block) | {"part": _part(block, text)})
        item = self._item(block, "incomplete" if cut else "completed", text)
        return done + self._event("response.output_item.done", {"output_index": block.at, "item": item})

    def closing(self, choice: Choice) -> bytes:
        """The last item is done."""
        return self._blocks.close(choice, self)

    def ending(self, generation: Generation) -> bytes:
        """The whole response once more."""
        status = _status(generation.choices[0])
        return self._event(f"response.{status}", {"response": self._complete()})

    def error_event(self, body: bytes) -> bytes:
        """An error after the first byte."""
        error = msgspec.json.decode(body)["error"]
        return self._event("error", {"code": error["code"], "message": error["message"], "param": error["param"]})

    def whole(self, generation: Generation) -> bytes:
        """As one JSON body."""
        return msgspec.json.encode(self._complete())

    def _event(self, name: str, fields: dict[str, Any]) -> bytes:
        number, self._number = self._number, self._number + 1
        return event(name, {"sequence_number": number} | fields)

    def _id(self, block: Block) -> str:
        return f"{_ID[block.kind]}_{self._call.id}_{block.at}"

    def _where(self, block: Block) -> dict[str, Any]:
        return {"item_id": self._id(block), "output_index": block.at, "content_index": 0}

    def _item(self, block: Block, status: str, text: str) -> dict[str, Any]:
        if block.call is not None:
            return {
                "id": self._id(block), "type": "function_call", "status": status, "call_id": block.call.id,
                "name": block.call.name, "arguments": text,
            }  # fmt: skip
        content = [_part(block, text)] if text or status != "in_progress" else []
        if block.kind == "thoughts":
            return {"id": self._id(block), "type": "reasoning", "status": status, "summary": [], "content": content}
        return {
            "id": self._id(block), "type": "message", "status": status, "role": "assistant", "content": content,
        }  # fmt: skip

    def _complete(self) -> dict[str, Any]:
        choice = self._generation.choices[0]
        blocks, status = whole(choice), _status(choice)
        usage = self._generation.usage()
        output = [self._item(block, status if block is blocks[-1] else "completed", block.text) for block in blocks]
        return self._response(status, output) | {
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "usage": {
                "input_tokens": usage["prompt_tokens"], "input_tokens_details": usage["prompt_tokens_details"],
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": usage["completion_tokens_details"], "total_tokens": usage["total_tokens"],
            },
        }  # fmt: skip

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        body = self._body
        return {
            "id": f"resp_{self._call.id}", "object": "response", "created_at": self._call.created, "status": status,
            "error": None, "incomplete_details": None, "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens, "metadata": body.metadata or {}, "model": self._model,
            "output": output, "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning is not None else None, "summary": None},
            "store": False, **self._used, "text": {"format": (body.text or {}).get("format") or {"type": "text"}},
            "tool_choice": body.tool_choice or ("auto" if body.tools else "none"),
            "tools": [_TOOL | tool for tool in body.tools or ()], "truncation": "disabled", "usage": None,
            "user": body.user,
        }  # fmt: skip


def _part(block: Block, text: str) -> dict[str, Any]:
    if block.kind == "thoughts":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _status(choice: Choice) -> str:
    return "incomplete" if choice.finish_reason == "length" else "completed"
