"""docs/features.md says what works together in one request: each pair it promises is asked of a real server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from penstock.deployment import Deployment
from penstock.runtime import ChatTemplate
from penstock.serve.app import create_app

from .conftest import Real

PAGE = Path(__file__).parents[2] / "docs" / "features.md"
SCHEMA: Final = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
TOOL: Final = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
FEATURES: Final[dict[str, dict[str, Any]]] = {
    "stream": {"stream": True, "stream_options": {"include_usage": True}},
    "`n` > 1": {"n": 2},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "prompt logprobs": {"prompt_logprobs": 1},
    "stop strings": {"stop": ["zebra", "quux"]},
    "structured output": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "one", "schema": SCHEMA, "strict": True}}
    },
    "tools": {"tools": [TOOL], "tool_choice": "auto"},
}


def promised() -> list[tuple[str, str]]:
    """Pairs of the first table whose cell says yes, but for those with an adapter, which needs another server."""
    table = PAGE.read_text(encoding="utf-8").split("\n\n")[2].splitlines()
    columns = [name.strip() for name in table[0].strip("| \n").split("|")]
    pairs = []
    for line in table[2:]:
        name, *cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        row = name.strip("*")
        pairs += [(row, column) for column, cell in zip(columns, cells, strict=False) if cell == "yes"]
    return [pair for pair in pairs if "LoRA adapter" not in pair]


def test_the_table_is_read_whole() -> None:
    assert len(promised()) == len(FEATURES) * (len(FEATURES) - 1) / 2


@pytest.fixture(scope="module")
def url(real: Real) -> Iterator[str]:
    """The real service behind an app that is told how its model would call tools: the one in the box does not."""
    deployment = Deployment.parse({"server": {"tool_parser": "json"}})
    template = ChatTemplate.of(real.tokenizer)
    yield from real.loop.serve(create_app(real.service, deployment, tokenizer=real.tokenizer, template=template))


@pytest.mark.parametrize("pair", promised(), ids=lambda pair: f"{pair[0]} and {pair[1]}")
def test_two_features_together(url: str, pair: tuple[str, str]) -> None:
    body = {"messages": [{"role": "user", "content": "What is 27 + 45?"}], "max_tokens": 12, "temperature": 0}
    body |= FEATURES[pair[0]] | FEATURES[pair[1]]
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    if "stream" in pair:
        assert answer.text.rstrip().endswith("data: [DONE]")
        assert '"error"' not in answer.text
        return
    choices = answer.json()["choices"]
    assert len(choices) == (2 if "`n` > 1" in pair else 1)
    for choice in choices:
        if "structured output" in pair:
            assert re.match(r"\s*\{", choice["message"]["content"])
        if "logprobs" in pair:
            assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 2
