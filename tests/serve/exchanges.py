"""Requests whose answers are kept as goldens (tests/goldens/wire), and what of an answer may differ from run to run.

An exchange is written as it goes over the wire, one file each. Ids, times, version and fingerprint stand as their
kind in angle brackets, and so do floats, which kernels compute a little differently. How many tokens share a chunk of
a stream depends on who was faster, so chunks that only go on are joined, and choices stand one after the other.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import httpx

from .sse import events, named_events

HEADERS = ("content-type", "cache-control", "x-accel-buffering", "allow", "retry-after", "retry-after-ms")
"""Of an answer's headers those that are a promise; and x-request-id."""


@dataclass(frozen=True)
class Exchange:
    """One request. `name` is the golden's file name."""

    name: str
    path: str
    body: Any = None
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)

    def send(self, client: httpx.Client) -> httpx.Response:
        if self.body is None:
            return client.request(self.method, self.path, headers=self.headers)
        content = self.body if isinstance(self.body, bytes) else json.dumps(self.body, ensure_ascii=False).encode()
        return client.request(
            self.method, self.path, content=content, headers={"content-type": "application/json"} | self.headers
        )


def _user(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8} | more


def _prompt(text: str, **more: Any) -> dict[str, Any]:
    return {"prompt": text, "temperature": 0, "max_tokens": 6, "ignore_eos": True} | more


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
ASK = "Tell me about rivers."
CITY = {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 4}}, "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip


def _response(**more: Any) -> dict[str, Any]:
    """Made to call a tool."""
    tools = [{"type": "function", "name": "weather", "description": "Weather of a place", "parameters": CITY}]
    forced = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    return {"input": ASK, "temperature": 0, "max_output_tokens": 200} | forced | more


def _message(**more: Any) -> dict[str, Any]:
    tools = [{"name": "weather", "description": "Weather of a place", "input_schema": CITY}]
    choice = {"type": "any", "disable_parallel_tool_use": True}
    return _user(ASK, max_tokens=200, tools=tools, tool_choice=choice) | more


EXCHANGES: tuple[Exchange, ...] = (
    Exchange("models", "/v1/models", method="GET"),
    Exchange("model", "/v1/models/millrace", method="GET"),
    Exchange("model_unknown", "/v1/models/other", method="GET"),
    Exchange("version", "/version", method="GET"),
    Exchange("health", "/health", method="GET"),
    Exchange("ready", "/ready", method="GET"),
    Exchange("ready_head", "/ready", method="HEAD"),
    Exchange("tokenize", "/tokenize", {"prompt": "The river", "return_token_strs": True}),
    Exchange("tokenize_messages", "/tokenize", {"messages": [{"role": "user", "content": "hi"}]}),
    Exchange("detokenize", "/detokenize", {"tokens": [100, 101, 102]}),
    Exchange("chat", CHAT, _user(ASK, model="millrace")),
    Exchange("chat_options", CHAT, _user(
        ASK, n=2, seed=3, logprobs=True, top_logprobs=2, return_token_ids=True, timings=True, prompt_logprobs=0,
        max_completion_tokens=2, stop=["zzz"], metadata={"a": "b"}, user="someone", priority=1, cache_salt="salt",
    )),
    Exchange("chat_stream", CHAT, _user(ASK, stream=True)),
    Exchange("chat_stream_usage", CHAT, _user(ASK, stream=True, stream_options={"include_usage": True}, n=2)),
    Exchange("chat_stream_options", CHAT, _user(
        ASK, stream=True, logprobs=True, top_logprobs=1, return_token_ids=True, timings=True, max_tokens=2,
        prompt_logprobs=1,
    )),
    Exchange("completion", COMPLETIONS, _prompt("The river")),
    Exchange("completion_prompts", COMPLETIONS, _prompt("", prompt=["The river", [100, 101]], n=2, max_tokens=2)),
    Exchange("completion_logprobs", COMPLETIONS, _prompt("The river", logprobs=2, max_tokens=2)),
    Exchange("completion_echo", COMPLETIONS, _prompt("The river", logprobs=1, echo=True, max_tokens=1)),
    Exchange("completion_scored", COMPLETIONS, _prompt("The river", logprobs=0, echo=True, max_tokens=0)),
    Exchange("completion_prompt_logprobs", COMPLETIONS, _prompt("The river", prompt_logprobs=1, return_token_ids=True)),
    Exchange("completion_stream", COMPLETIONS, _prompt(
        "The river", stream=True, logprobs=1, echo=True, return_token_ids=True, stream_options={"include_usage": True},
    )),
    Exchange("completion_stop_stream", COMPLETIONS, _prompt("One two three", stream=True, stop=" ", max_tokens=20)),
    Exchange("responses", RESPONSES, {
        "input": ASK, "instructions": "Be brief.", "temperature": 0, "max_output_tokens": 8,
    }),
    Exchange("responses_stream", RESPONSES, {"input": ASK, "temperature": 0, "max_output_tokens": 8, "stream": True}),
    Exchange("responses_tools", RESPONSES, _response()),
    Exchange("responses_tools_stream", RESPONSES, _response(stream=True)),
    Exchange("responses_stored", RESPONSES, {"input": ASK, "previous_response_id": "resp_1"}),
    Exchange("messages", MESSAGES, _user(ASK, system="Be brief.")),
    Exchange("messages_stream", MESSAGES, _user(ASK, stream=True)),
    Exchange("messages_tools", MESSAGES, _message()),
    Exchange("messages_tools_stream", MESSAGES, _message(stream=True)),
    Exchange("messages_count", "/v1/messages/count_tokens", {"messages": [{"role": "user", "content": ASK}]}),
    Exchange("messages_picture", MESSAGES, _user(ASK, messages=[
        {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://a/b.png"}}]},
    ])),
    Exchange("embeddings_none", "/v1/embeddings", {"input": "hi", "model": "millrace"}),
    Exchange("error_body", COMPLETIONS, b'{"prompt": '),
    Exchange("error_type", COMPLETIONS, {"prompt": 5}),
    Exchange("error_bound", CHAT, _user(ASK, temperature=3)),
    Exchange("error_missing", CHAT, {}),
    Exchange("error_context", COMPLETIONS, _prompt("The river", max_tokens=100_000)),
    Exchange("error_model", CHAT, _user(ASK, model="other")),
    Exchange("error_path", "/v1/nowhere", method="GET"),
    Exchange("error_method", COMPLETIONS, method="GET"),
    Exchange("error_host", "/v1/models", method="GET", headers={"host": "a b"}),
    Exchange("error_media_type", COMPLETIONS, b"prompt=x", headers={"content-type": "text/plain"}),
    Exchange("error_headers", "/v1/models", method="GET", headers={"x-long": "a" * 40_000}),
    Exchange("options", COMPLETIONS, method="OPTIONS"),
)  # fmt: skip


def recorded(exchange: Exchange, reply: httpx.Response) -> str:
    """The golden's text."""
    lines = [f"{exchange.method} {exchange.path}"]
    lines += [f"{name}: {value if len(value) < 100 else '<long>'}" for name, value in exchange.headers.items()]
    if exchange.body is not None:
        body = exchange.body
        lines += ["", body.decode() if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False)]
    lines += ["", f"HTTP/1.1 {reply.status_code}", "x-request-id: <id>" if reply.headers["x-request-id"] else ""]
    lines += [f"{name}: {reply.headers[name]}" for name in HEADERS if name in reply.headers]
    lines.append("")
    if reply.headers.get("content-type", "").startswith("text/event-stream"):
        if reply.content.startswith(b"event: "):
            found = [_line(one) for one in gone_on(named_events(reply.content))]
            return "\n".join([*lines, *(f"data: {one}\n" for one in found)]).rstrip() + "\n"
        payloads, _ = events(reply.content)
        chunks = [json.loads(payload) for payload in payloads if payload != "[DONE]"]
        lines += [f"data: {_line(chunk)}\n" for chunk in joined(chunks)]
        lines.append("data: [DONE]\n" if payloads[-1] == "[DONE]" else "")
    elif reply.content:
        lines.append(json.dumps(canonical(reply.json()), ensure_ascii=False, indent=1))
    return "\n".join(lines).rstrip() + "\n"


def _line(chunk: dict[str, Any]) -> str:
    return json.dumps(canonical(chunk), ensure_ascii=False)


def canonical(value: Any, key: str = "") -> Any:
    """`value` without what differs from run to run."""
    if isinstance(value, dict):
        return {name: canonical(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [canonical(part) for part in value]
    if key in ("created", "created_at", "system_fingerprint", "version", "sequence_number"):
        return f"<{key}>"
    if key == "id" and re.match(r"(chatcmpl|cmpl)-", value):
        return "<id>"
    if key in ("id", "item_id", "call_id") and (kind := re.match(r"resp_|msg_|rs_|fc_|call_", value)):
        return f"<{kind[0]}>"
    return "<float>" if isinstance(value, float) else value


def gone_on(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Named events, neighbouring deltas of one kind as one."""
    result: list[dict[str, Any]] = []
    for one in found:
        last = result[-1] if result else {"type": ""}
        if not (one["type"] == last["type"] and "delta" in one and one["type"] != "message_delta"):
            result.append(one)
        elif isinstance(one["delta"], str):
            last["delta"] += one["delta"]
        else:
            [name] = one["delta"].keys() - {"type"}
            last["delta"][name] += one["delta"][name]
    return result


def joined(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Chunks by choice, those that only go on as one."""
    by_choice = sorted(chunks, key=lambda chunk: chunk["choices"][0]["index"] if chunk["choices"] else 1_000)
    result: list[dict[str, Any]] = []
    for chunk in by_choice:
        if result and _goes_on(result[-1]) and _goes_on(chunk) and _index(result[-1]) == _index(chunk):
            _append(result[-1]["choices"][0], chunk["choices"][0])
        else:
            result.append(chunk)
    return result


def _index(chunk: dict[str, Any]) -> int:
    return int(chunk["choices"][0]["index"])


def _goes_on(chunk: dict[str, Any]) -> bool:
    if not chunk["choices"]:
        return False
    choice = chunk["choices"][0]
    opens = "prompt_token_ids" in choice or "prompt_logprobs" in choice or "role" in choice.get("delta", {})
    return choice["finish_reason"] is None and not opens


def _append(onto: dict[str, Any], more: dict[str, Any]) -> None:
    """Texts and lists of `more` after those of `onto`, at any depth; all else is the same in both."""
    for name, part in more.items():
        if isinstance(part, dict):
            if part.keys() != onto[name].keys():
                raise AssertionError(f"{name} changes its fields within a stream")
            _append(onto[name], part)
        elif isinstance(part, str | list):
            onto[name] = onto[name] + part
        elif onto[name] != part:
            raise AssertionError(f"{name} changes within a stream: {onto[name]!r}, {part!r}")
