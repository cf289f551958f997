"""A strict reader of event streams: it accepts what the wire format promises and nothing else.

`read_stream` raises AssertionError at the first broken rule and returns what the stream said, put together per choice.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Read:
    """One choice, put together."""

    text: str = ""
    pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None


@dataclass
class Stream:
    choices: dict[int, Read]
    chunks: list[dict[str, Any]]
    usage: dict[str, Any] | None
    error: dict[str, Any] | None
    comments: int


def events(raw: bytes) -> tuple[list[str], int]:
    """The payloads of all events, and the number of comment lines. Every event is one `data: ` line and a blank one."""
    assert raw.endswith(b"\n\n"), "a stream ends with a blank line"
    assert b"\r" not in raw
    payloads, comments = [], 0
    for block in raw[:-2].decode("utf-8").split("\n\n"):
        assert "\n" not in block, f"more than one line in {block!r}"
        if block.startswith(":"):
            comments += 1
            continue
        assert block.startswith("data: "), f"neither data nor a comment: {block!r}"
        assert len(block.splitlines()) == 1, f"some clients split this line: {block!r}"
        payloads.append(block[len("data: ") :])
    return payloads, comments


def named_events(raw: bytes) -> list[dict[str, Any]]:
    """Strictly: each event is its name, its data, and an empty line; the data repeats the name."""
    assert raw.endswith(b"\n\n")
    found = []
    for block in raw[:-2].decode().split("\n\n"):
        first, second = block.split("\n")
        assert first.startswith("event: ")
        assert second.startswith("data: ")
        body = json.loads(second.removeprefix("data: "))
        assert body["type"] == first.removeprefix("event: ")
        found.append(body)
    return found


def read_stream(raw: bytes, *, n: int = 1, include_usage: bool = False, chat: bool = True) -> Stream:
    """Check every rule. `n`: choices expected, list prompts included."""
    payloads, comments = events(raw)
    assert payloads, "no event at all"
    bodies = [json.loads(payload) for payload in payloads if payload != "[DONE]"]
    if "error" in bodies[-1]:
        assert payloads[-1] != "[DONE]", "after an error the stream ends"
        assert set(bodies[-1]) == {"error"}
        assert set(bodies[-1]["error"]) == {"message", "type", "param", "code"}
        error = bodies.pop()["error"]
    else:
        assert payloads[-1] == "[DONE]"
        assert payloads.count("[DONE]") == 1
        error = None
    assert all("error" not in body for body in bodies)
    usage = None
    if include_usage and error is None:
        last = bodies.pop()
        assert last["choices"] == []
        usage = last["usage"]
        check_usage(usage)
        _check_meta([*bodies, last], chat)
    else:
        _check_meta(bodies, chat)
    choices = {index: Read() for index in range(n)}
    for body in bodies:
        if include_usage:
            assert body["usage"] is None
        else:
            assert "usage" not in body
        for choice in body["choices"]:
            _take(choice, choices[choice["index"]], chat)
    if error is None:
        assert all(read.finish_reason is not None for read in choices.values())
    return Stream(choices, bodies, usage, error, comments)


def check_usage(usage: dict[str, Any]) -> None:
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 <= usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0


def _check_meta(bodies: list[dict[str, Any]], chat: bool) -> None:
    for key in ("id", "created", "model", "object", "system_fingerprint"):
        assert len({body[key] for body in bodies}) <= 1, f"{key} changes within a stream"
    for body in bodies:
        assert body["object"] == ("chat.completion.chunk" if chat else "text_completion")
        assert body["id"].startswith("chatcmpl-" if chat else "cmpl-")


def _take(choice: dict[str, Any], read: Read, chat: bool) -> None:
    assert read.finish_reason is None, "a chunk after the finish chunk"
    if chat:
        delta = choice["delta"]
        if choice["finish_reason"] is not None:
            assert delta == {}, "the finish chunk has an empty delta"
        elif not read.pieces:
            assert delta == {"role": "assistant", "content": ""}, "the first chunk has the role"
        else:
            assert set(delta) == {"content"}
        text = delta.get("content", "")
    else:
        text = choice["text"]
        if choice["finish_reason"] is not None:
            assert text == "", "the finish chunk has no text"
    assert "\ufffd" not in text or choice["finish_reason"] is None
    read.pieces.append(text)
    read.text += text
    read.token_ids += choice.get("token_ids") or []
    if choice["logprobs"] is not None:
        read.logprobs += choice["logprobs"]["content"] if chat else [choice["logprobs"]]
    read.finish_reason = choice["finish_reason"]
    read.stop_reason = choice.get("stop_reason")
