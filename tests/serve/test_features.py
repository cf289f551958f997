"""docs/features.md says what works together in one request: each pair it promises is asked of a real server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from penstock.catalog import resolve_model
from penstock.deployment import Deployment
from penstock.runtime import ChatTemplate, load_tokenizer
from penstock.runtime.service import Service
from penstock.serve.app import create_app
from penstock.testing.adapters import tiny_adapter

from .conftest import Loop

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
    "LoRA adapter": {"model": "tuned"},
}


def promised() -> list[tuple[str, str]]:
    """Pairs of the first table whose cell says yes."""
    table = PAGE.read_text(encoding="utf-8").split("\n\n")[2].splitlines()
    columns = [name.strip() for name in table[0].strip("| \n").split("|")]
    pairs = []
    for line in table[2:]:
        name, *cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        row = name.strip("*")
        pairs += [(row, column) for column, cell in zip(columns, cells, strict=False) if cell == "yes"]
    return pairs


def test_the_table_is_read_whole() -> None:
    assert len(promised()) == len(FEATURES) * (len(FEATURES) - 1) / 2


@pytest.fixture(scope="module")
def url(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The model in the box with an adapter, told how it would call tools, since its template does not show it."""
    path = tiny_adapter(resolve_model("millrace"), tmp_path_factory.mktemp("adapters") / "tuned", std=0.06)
    deployment = Deployment.parse(
        {
            "model": {"adapters": {"tuned": str(path)}, "max_adapters": 1}, "hardware": {"threads": 1},
            "memory": {"kv_bytes": "32MiB"}, "server": {"tool_parser": "json"},
        }
    )  # fmt: skip
    service = asyncio.run_coroutine_threadsafe(Service.start(deployment), loop.loop).result(240)
    tokenizer = load_tokenizer(service.info.path)
    app = create_app(service, deployment, tokenizer=tokenizer, template=ChatTemplate.of(tokenizer))
    try:
        yield from loop.serve(app)
    finally:
        loop.run(service.close())


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
