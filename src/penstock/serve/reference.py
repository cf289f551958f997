"""The tables of docs/api.md: every field of every body, its bounds from schema and settings, and its meaning.

A field without a meaning here, or a meaning without a field, fails a test.
"""

from __future__ import annotations

from typing import Final

import msgspec.inspect as types

from penstock.deployment.limits import Limits
from penstock.serve.embeddings import EmbeddingBody
from penstock.serve.limits import CHECKS
from penstock.serve.messages_body import CountBody, MessagesBody
from penstock.serve.responses_body import ResponsesBody
from penstock.serve.schema import ChatBody, CompletionBody
from penstock.serve.text import DetokenizeBody, TokenizeBody
from penstock.serve.unsupported import UNSUPPORTED

BODIES: Final[dict[str, type]] = {
    "POST /v1/chat/completions": ChatBody,
    "POST /v1/completions": CompletionBody,
    "POST /v1/responses": ResponsesBody,
    "POST /v1/messages": MessagesBody,
    "POST /v1/messages/count_tokens": CountBody,
    "POST /v1/embeddings": EmbeddingBody,
    "POST /tokenize": TokenizeBody,
    "POST /detokenize": DetokenizeBody,
}

MEANING: Final[dict[str, str]] = {
    "model": "Name of the model or of an adapter of `GET /v1/models`. Left out: the model that is served.",
    "messages": "The conversation. `content` is a string or a list of text parts; a `tool` message names its "
    "`tool_call_id`; of /v1/messages, it may hold `text`, `thinking`, `tool_use` and `tool_result` blocks, and a last "
    "turn of the assistant goes on.",
    "prompt": "A text, token ids, or a list of either. Choice j of prompt i has `index` i·n + j. /v1/responses refuses "
    "it: no prompts are stored.",
    "input": "A text, token ids, or a list of either; of /v1/responses, a text or a list of items: `message`, "
    "`reasoning`, `function_call`, `function_call_output`.",
    "tokens": "Token ids; control tokens are shown in the text.",
    "stream": "Server-sent events instead of one body.",
    "stream_options": "`include_usage`: one more chunk with the usage and no choices. With it "
    "`continuous_usage_stats`: the usage so far in each chunk, too. Streams only.",
    "max_tokens": "Bound on output tokens. Left out: 16 for /v1/completions, to the end of the context for chat. "
    "0 (completions, with `echo` or `prompt_logprobs`): only the prompt is looked at.",
    "max_completion_tokens": "As `max_tokens`, and wins over it.",
    "n": "Choices per prompt. Of one `seed`, choice j takes seed + j.",
    "best_of": "The same as `n`, or left out.",
    "temperature": "0 is greedy. Left out: what the model's generation_config.json says, else 1; so for the next four.",
    "top_k": "Of the k most likely tokens. 0 and -1: all.",
    "top_p": "Of the most likely tokens that have this probability together.",
    "min_p": "Of the tokens with at least this share of the largest probability.",
    "repetition_penalty": "Over prompt and output; above 1 discourages repetition.",
    "presence_penalty": "Over output.",
    "frequency_penalty": "Over output, per occurrence.",
    "logit_bias": "Token id to a number that is added to its logit.",
    "seed": "The same seed, prompt and options give the same tokens; on a CPU whatever else is in the batch.",
    "stop": "Strings that end the answer and never show in it.",
    "stop_token_ids": "Ids that end the answer; `stop_reason` names the one.",
    "min_tokens": "No end before so many tokens, neither by an end token nor by a stop string.",
    "ignore_eos": "Do not end at the model's end tokens.",
    "include_stop_str_in_output": "Show the string or token that ended the answer.",
    "skip_special_tokens": "false: control tokens show in the text. Default true.",
    "logprobs": "Chat: a switch. Completions: the logprob of each token, and those of so many likeliest ones.",
    "top_logprobs": "With `logprobs: true`: so many likeliest tokens at each place. Of /v1/responses: 0, or left out.",
    "prompt_logprobs": "Of the prompt's tokens by id, with rank; null for the first. Nothing is taken from the prefix "
    "cache then. n x prompt tokens x (this + 1) up to 262,144.",
    "echo": "The prompt comes first in the text; with `logprobs`, so do its log-probabilities.",
    "return_token_ids": "`prompt_token_ids` and `token_ids` beside the text.",
    "timings": "Where the time went, in seconds: queue, prefill, first token, decode, mean gap; and cached tokens.",
    "priority": "Lower goes first, where `policy.order` is priority.",
    "cache_salt": "Prefixes are shared only between requests of one tenant and salt.",
    "user": "Noted nowhere; who asks is known by the key.",
    "metadata": "Checked, and noted nowhere.",
    "add_special_tokens": "What the tokenizer puts around a text, such as the token of its beginning. Default true.",
    "add_generation_prompt": "End with the header of the assistant's turn. Default true.",
    "continue_final_message": "The last message is the beginning of the answer, which goes on from there.",
    "chat_template_kwargs": "For the model's template: `enable_thinking`, `thinking`, `reasoning_effort`.",
    "reasoning_effort": "The same as in `chat_template_kwargs`; refused where the model's template does not read it.",
    "return_token_strs": "The text of each token, too.",
    "max_output_tokens": "As `max_completion_tokens` of chat.",
    "instructions": "A system message before the input.",
    "system": "A system message before the others.",
    "stop_sequences": "As `stop` of chat; `stop_sequence` names the one.",
    "thinking": "Whether the model thinks before it answers ([how](tools.md#reasoning)). `budget_tokens` has to be "
    "below `max_tokens`, and is not enforced beyond that.",
    "output_config": "`format`: a JSON schema that the text is held to. `effort`: as `reasoning_effort` of chat, where "
    "the model's template reads it.",
    "mcp_servers": "Refused, unless empty.",
    "reasoning": "`effort`, as `reasoning_effort` of chat. A `summary` is refused.",
    "service_tier": "Accepted, and without effect.",
    "text": "`format`: `text`, `json_object`, or `json_schema` with a schema that the text is then held to.",
    "conversation": "Refused: nothing is stored. The whole conversation goes into `input`.",
    "include": "Accepted; the reasoning is always there. `message.output_text.logprobs` is refused.",
    "previous_response_id": "Refused: nothing is stored. The whole conversation goes into `input`.",
    "truncation": "`disabled`, or left out: nothing is ever cut silently.",
    "store": "Accepted; nothing is stored, and the answer says so.",
    "background": "false, or left out.",
    "encoding_format": "`base64`: of little-endian float32.",
    "dimensions": "The first so many numbers, brought to length 1. Up to the model's own.",
    "tools": "Functions that the model may call, in the form of each API. Tools that a server runs are refused.",
    "tool_choice": "`none`, `auto`, `required` (`any` in /v1/messages), one function, or (not there) `allowed_tools`. "
    "Default: auto with tools, else none.",
    "parallel_tool_calls": "false: one call at most.",
    "response_format": "`text`, `json_object`, or `json_schema` with a schema that the text is then held to.",
    "guided_json": "A JSON schema, as in `response_format`.",
    "guided_regex": "The text matches this expression.",
    "guided_choice": "The text is one of these strings.",
    "guided_grammar": "The text follows this grammar (GBNF or Lark).",
    "json_schema": "As `guided_json`, in SGLang's name for it.",
    "regex": "As `guided_regex`, in SGLang's name for it.",
    "ebnf": "As `guided_grammar`, in SGLang's name for it.",
    "structured_outputs": "The same under one name: `json`, `regex`, `choice`, `grammar`.",
}


def reference() -> str:
    """All tables, as Markdown."""
    parts = []
    for name, kind in BODIES.items():
        info = types.type_info(kind)
        assert isinstance(info, types.StructType)
        rows = ["| field | takes | bounds | meaning |", "|---|---|---|---|"]
        for field in sorted(info.fields, key=lambda one: not one.required):
            label = f"**`{field.encode_name}`**" if field.required else f"`{field.encode_name}`"
            accepted, bounds = _takes(field.type), _limits(field.encode_name, kind) or _bounds(field.type)
            rows.append(f"| {label} | {accepted} | {bounds} | {MEANING[field.encode_name]} |")
        parts.append(f"### {name}\n\n" + "\n".join(rows))
    refused = ", ".join(f"`{name}`" for name in sorted(UNSUPPORTED))
    parts.append(
        "### Known and refused\n\nWhere one of these would change the answer it is 400 `unsupported_parameter`; values "
        f"that change nothing are accepted: {refused}."
    )
    return "\n\n".join(parts)


def _takes(kind: types.Type) -> str:
    match kind:
        case types.UnionType():
            return " or ".join(dict.fromkeys(_takes(one) for one in kind.types if not isinstance(one, types.NoneType)))
        case types.BoolType():
            return "true, false"
        case types.IntType():
            return "integer"
        case types.FloatType():
            return "number"
        case types.StrType():
            return "text"
        case types.ListType():
            item = _takes(kind.item_type)
            return f"list of ({item})" if " or " in item else f"list of {item}"
        case types.DictType():
            return "object"
        case types.LiteralType():
            return ", ".join(f"`{value}`" for value in kind.values)
        case types.StructType():
            return "object"
        case _:
            return "any"


def _bounds(kind: types.Type) -> str:
    """Of a number or a text; of a list, its length."""
    match kind:
        case types.UnionType():
            return ", ".join(dict.fromkeys(found for one in kind.types if (found := _bounds(one))))
        case types.IntType() | types.FloatType():
            low = f"{_number(kind.ge)} to" if kind.ge is not None else f"above {_number(kind.gt)}, up to"
            return f"{low} {_number(kind.le)}" if kind.le is not None else ""
        case types.StrType():
            return f"≤ {kind.max_length:,} characters" if kind.max_length and kind.max_length < 8_000_000 else ""
        case types.ListType() | types.DictType():
            inner = _bounds(kind.value_type if isinstance(kind, types.DictType) else kind.item_type)
            length = f"≤ {kind.max_length:,}" if kind.max_length else ""
            return ", each ".join(part for part in (length, inner) if part)
        case _:
            return ""


def _number(value: float | int | None) -> str:
    if isinstance(value, int) and abs(value) >= 2**31 - 1:
        return f"-2^{value.bit_length() - 1}" if value < 0 else f"2^{value.bit_length()}-1"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if value is not None else ""


def _limits(field: str, kind: type) -> str:
    """The configured ones; the schema's own bounds are beyond them."""
    if field == "logprobs" and kind is ChatBody:
        return ""
    defaults = Limits()
    found = [f"≤ {getattr(defaults, limit)}{unit} (`{limit}`)" for name, limit, _, unit in CHECKS if name == field]
    if field == "prompt" and kind is CompletionBody:
        found.append(f"≤ {defaults.prompts} prompts (`prompts`)")
    if field == "input" and kind is EmbeddingBody:
        found.append(f"≤ {defaults.inputs} inputs (`inputs`)")
    return ", ".join(found)
