"""A model that calls tools and thinks, made of a script; used by the tests of every wire format that has such."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from penstock.control.request import Request
from penstock.runtime import Tokenizer
from penstock.runtime.facts import Output

from .conftest import Scripted
from .scripted import EOS, Script, ScriptedService

HERMES = (
    "{% if tools %}Tools: {{ tools | tojson }} as <tool_call> </tool_call>\n{% endif %}"
    "{% for one in messages %}{{ one.role }}: {{ one.content or '' }}"
    "{% for call in one.tool_calls or [] %}<tool_call>{{ call.function.arguments | tojson }}</tool_call>{% endfor %}"
    "{% if one.reasoning_content %}({{ one.reasoning_content }}){% endif %}\n{% endfor %}"
    "assistant: {% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
SPECIAL = ("<tool_call>", "</tool_call>", "<think>", "</think>")
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 0,
                                                                                "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}  # fmt: skip
STOP: dict[str, Any] = {"type": "function", "function": {"name": "stop-now"}}
TOOLS = [WEATHER, STOP]
ONE = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>'
TWO = '<tool_call>\n{"name": "stop-now", "arguments": {}}\n</tool_call>'


class Model(Scripted):
    """A scripted server whose model knows the tokens of Qwen 3."""

    def __init__(self, service: ScriptedService, url: str, tokenizer: Tokenizer) -> None:
        super().__init__(service, url)
        self.tokenizer = tokenizer

    def will_say(self, text: str, *, tokens_per_output: int = 1) -> None:
        self.service.script = speak(self.tokenizer, text, tokens_per_output)

    def prompt(self) -> str:
        return self.tokenizer.decode(self.service.calls[-1].prompt, skip_special_tokens=False)


def speak(tokenizer: Tokenizer, text: str, tokens_per_output: int) -> Script:
    """Answer with `text`, its control tokens as such, and the end token."""
    ids = [*tokenizer.encode(text, add_special_tokens=False, allow_special=True), EOS]

    async def script(request: Request) -> AsyncIterator[Output]:
        for first in range(0, len(ids), tokens_per_output):
            last = first + tokens_per_output >= len(ids)
            yield Output(
                tuple(ids[first : first + tokens_per_output]), finished="stop" if last else None,
                stop_id=EOS if last else None,
            )  # fmt: skip

    return script
