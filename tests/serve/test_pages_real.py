"""Programs and calls that the pages show are run as they stand there, against a server with the model in the box."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from penstock.deployment import Deployment
from penstock.runtime import ChatTemplate, load_tokenizer
from penstock.runtime.service import Service
from penstock.serve.app import create_app

from .conftest import Loop

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
SHOWN = "http://127.0.0.1:8000"
PROGRAMS = [
    pytest.param(text, id=f"{page.name}-{number}")
    for page in PAGES
    for number, text in enumerate(re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S))
    if "OpenAI(" in text
]
CALLS = [
    pytest.param(line, id=f"{page.name}-{number}")
    for page in PAGES
    for number, line in enumerate(re.findall(r"^ {4}(curl .*)$", page.read_text("utf-8").replace("\\\n", ""), re.M))
    if "millrace" in line
]


@pytest.fixture(scope="module")
def url(loop: Loop) -> Iterator[str]:
    """With tools and embeddings, which the model in the box does not have by itself."""
    deployment = Deployment.parse(
        {
            "model": {"pooling": "last"}, "hardware": {"threads": 1}, "memory": {"kv_bytes": "32MiB"},
            "server": {"tool_parser": "hermes"},
        }
    )  # fmt: skip
    service = loop.run(Service.start(deployment))
    tokenizer = load_tokenizer(service.info.path)
    app = create_app(service, deployment, tokenizer=tokenizer, template=ChatTemplate.of(tokenizer))
    try:
        yield from loop.serve(app)
    finally:
        loop.run(service.close())


@pytest.mark.parametrize("text", PROGRAMS)
def test_a_program_of_a_page_runs_and_prints(text: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert SHOWN in text
    text = text.replace(SHOWN, url).replace('"my-model"', '"millrace"')
    if "tool_calls[0]" in text:  # this model calls a tool only where it must
        text = text.replace("tools=[weather])\n", 'tools=[weather], tool_choice="required")\n', 1)
        text = text.replace('{"type": "string"}', '{"type": "string", "maxLength": 12}')
    exec(compile(text, "page", "exec"), {"__name__": "page"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("line", CALLS)
def test_a_call_of_a_page_is_answered(line: str, url: str) -> None:
    words = shlex.split(line)
    body = json.loads(words[words.index("-d") + 1])
    assert words[1].startswith(SHOWN)
    answer = httpx.post(words[1].replace(SHOWN, url), json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"]
