"""Options this server knows, does not have yet, and must not ignore: the answer would mean something else.

Each entry says which values change nothing (and are therefore fine) and what the client can do instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from penstock.errors import InvalidRequest

Harmless = Callable[[Any, Mapping[str, Any]], bool]


def _empty(value: Any, body: Mapping[str, Any]) -> bool:
    return value is False or value in (None, "", [], {})


def _no_tool_wanted(value: Any, body: Mapping[str, Any]) -> bool:
    return value in (None, "none") or (value == "auto" and not body.get("tools"))


def _one_of_n(value: Any, body: Mapping[str, Any]) -> bool:
    return value is None or value == (body.get("n") or 1)


def _only_text(value: Any, body: Mapping[str, Any]) -> bool:
    return value in (None, ["text"])


def _not_off(value: Any, body: Mapping[str, Any]) -> bool:
    return value is not False


_LEAVE_OUT = "leave the field out"

UNSUPPORTED: Final[dict[str, tuple[Harmless, str]]] = {
    "functions": (_empty, _LEAVE_OUT),
    "function_call": (_no_tool_wanted, 'leave it out, or "none"'),
    "modalities": (_only_text, '["text"], or leave the field out'),
    "audio": (_empty, _LEAVE_OUT),
    "best_of": (_one_of_n, "the same value as n, or leave the field out"),
    "suffix": (_empty, _LEAVE_OUT),
    "use_beam_search": (_empty, _LEAVE_OUT),
    "truncate_prompt_tokens": (_empty, "shorten the prompt yourself"),
    "allowed_token_ids": (_empty, _LEAVE_OUT),
    "bad_words": (_empty, "logit_bias of -100 for the ids to avoid"),
    "chat_template": (_empty, "leave the field out; the model's own template is used"),
    "documents": (_empty, "put the text into a message"),
    "guided_whitespace_pattern": (_empty, _LEAVE_OUT),
    "logits_processors": (_empty, _LEAVE_OUT),
    "vllm_xargs": (_empty, _LEAVE_OUT),
    "kv_transfer_params": (_empty, _LEAVE_OUT),
    "web_search_options": (_empty, _LEAVE_OUT),
    "prompt_embeds": (_empty, "a prompt of text or token ids"),
    "input_ids": (_empty, "/v1/completions with the ids as its prompt"),
    "return_tokens_as_token_ids": (_empty, "return_token_ids: true"),
    "return_hidden_states": (_empty, _LEAVE_OUT),
    "thinking_token_budget": (_empty, _LEAVE_OUT),
    "include_reasoning": (_not_off, "pass over reasoning_content in the answer"),
    "separate_reasoning": (_not_off, "put reasoning_content and content together"),
    "stream_reasoning": (_not_off, "pass over reasoning_content in the stream"),
    "lora_path": (_empty, "model: the name of the adapter"),
    "stop_regex": (_empty, "stop, with the texts themselves"),
    "no_stop_trim": (_empty, "include_stop_str_in_output: true"),
    "custom_logit_processor": (_empty, _LEAVE_OUT),
    "session_params": (_empty, "send the whole conversation; its prefix is cached"),
}


def refuse_unsupported(body: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for the first field that would be ignored although it matters."""
    for name in UNSUPPORTED.keys() & body.keys():
        harmless, remedy = UNSUPPORTED[name]
        if not harmless(body[name], body):
            raise InvalidRequest(
                field=name, value=body[name], why="this server does not support it yet", remedy=remedy,
                code="unsupported_parameter",
            )  # fmt: skip
