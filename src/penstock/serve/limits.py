"""The configured bounds of a request's fields (`server.limits`), checked once the body is known to be well formed.

The schema holds the bounds that no setting can move; these are the lower ones that an operator chose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from penstock.deployment.limits import Limits
from penstock.errors import InvalidRequest

Measure = Callable[[Any], int]


def _number(value: Any) -> int:
    return int(value)


def _top(value: Any) -> int:
    # Chat's `logprobs` is a switch.
    return 0 if isinstance(value, bool) else int(value)


def _strings(value: Any) -> int:
    return 1 if isinstance(value, str) else len(value)


def _longest(value: Any) -> int:
    return len(value) if isinstance(value, str) else max(map(len, value), default=0)


CHECKS: Final[tuple[tuple[str, str, Measure, str], ...]] = (  # field, limit, what is measured, its unit
    ("n", "n", _number, ""),
    ("best_of", "n", _number, ""),
    ("messages", "messages", len, " messages"),
    ("stop", "stop_strings", _strings, " strings"),
    ("stop", "stop_characters", _longest, " characters"),
    ("stop_sequences", "stop_strings", _strings, " strings"),
    ("stop_sequences", "stop_characters", _longest, " characters"),
    ("stop_token_ids", "stop_tokens", len, " ids"),
    ("logit_bias", "logit_bias", len, " ids"),
    ("top_logprobs", "top_logprobs", _number, ""),
    ("prompt_logprobs", "top_logprobs", _number, ""),
    ("logprobs", "logprobs", _top, ""),
    ("tools", "tools", len, " tools"),
    ("metadata", "metadata_pairs", len, " pairs"),
)


def field_bytes(limits: Limits) -> dict[str, int]:
    """Bytes of JSON of the fields that hold anything, looked at before they become objects.

    A schema may be escaped and indented here; its own bound is looked at once it is read.
    """
    schema = 4 * limits.schema_bytes
    return {"tools": limits.tools_bytes, "tool_choice": 16_384, "chat_template_kwargs": 4096} | dict.fromkeys(
        (
            "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
            "json_schema", "regex", "ebnf", "text", "output_config",
        ),
        schema,
    )  # fmt: skip


def check_limits(body: object, limits: Limits) -> None:
    """Raises InvalidRequest for the first field beyond its limit."""
    for field, limit, measure, unit in CHECKS:
        value = getattr(body, field, None)
        if value is None:
            continue
        size, most = measure(value), getattr(limits, limit)
        if size > most:
            raise InvalidRequest(
                field=field, value=f"{size}{unit}" if unit else size, why=f"this server allows at most {most}{unit}",
                remedy=f"{most} or fewer, or a higher server.limits.{limit}",
            )  # fmt: skip
