"""`penstock bench` against `penstock serve`: the counts of both sides agree."""

from __future__ import annotations

import json

import pytest

from penstock.cli import main
from penstock.cli.hosting import in_background
from penstock.deployment import Deployment


def test_every_token_asked_for_is_served_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with in_background(Deployment.parse({"server": {"port": 0}, "hardware": {"threads": 1}})) as url:
        flags = ["--requests", "6", "--concurrency", "3", "--input-tokens", "40", "--output-tokens", "8", "--json"]
        with pytest.raises(SystemExit) as ended:
            main(["bench", "--url", url, *flags])
    data = json.loads(capsys.readouterr().out)
    assert data["failures"] == {}
    assert (data["completed"], data["total_input_tokens"], data["total_output_tokens"]) == (6, 240, 48)
    assert data["prompts_as"] == "token ids"
    assert ended.value.code == (0 if data["valid"] else 1)
