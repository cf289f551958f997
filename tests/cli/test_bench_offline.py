"""`penstock bench --offline`: what it prints follows from what it ran, and what it runs fits."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from penstock.cli import main
from penstock.control.step import Finished
from penstock.runtime import offline
from penstock.runtime.offline import offline_deployment
from penstock.runtime.size import size_up

from .conftest import Run

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:15:{second:02d}.0000000,{20 + second},{3 + second % 4}\n" for second in range(12)
)


@pytest.fixture
def bench(run: Run) -> Run:
    return functools.partial(run, "bench", "--offline")


def test_share_is_that_of_the_peak_it_was_given(bench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "set for other programs, and no reason to refuse")
    code, out, _ = bench("--requests", "3", "--input-tokens", "20", "--output-tokens", "5", "--peak", "50", "--json")
    data = json.loads(out)
    assert code == 0
    assert (data["completed"], data["total_input_tokens"], data["total_output_tokens"]) == (3, 60, 15)
    assert data["share_of_optimal"] == pytest.approx(
        data["total_token_throughput"] * 2 * data["parameters"] / 50e9, rel=1e-6
    )
    assert data["load_s"] > 0
    assert data["peak_memory_bytes"] > 4 * data["parameters"]


def test_a_trace_gives_lengths_and_each_request_a_line(bench: Run, tmp_path: Path) -> None:
    (tmp_path / "azure.csv").write_text(AZURE)
    code, out, _ = bench(
        "--trace", str(tmp_path / "azure.csv"), "--requests", "7", "--dtype", "int8", "--peak", "50", "--json",
        "--out", str(tmp_path / "requests.jsonl"),
    )  # fmt: skip
    data = json.loads(out)
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert code == 0
    assert data["dtype"] == "int8"
    assert (data["completed"], data["total_input_tokens"]) == (7, sum(range(20, 27)))
    assert len(lines) == 7


def test_text_says_share_load_and_memory(bench: Run) -> None:
    code, out, _ = bench("--requests", "1", "--input-tokens", "8", "--output-tokens", "2")
    assert code == 0
    assert "of optimal" in out
    assert "after the start of the process" in out


def test_an_interrupt_gives_those_that_were_answered(
    bench: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "azure.csv").write_text(AZURE)
    run = offline.run

    def interrupted(built: Any, requests: Any, on_turn: Any) -> Any:
        def turned(turn: Any) -> None:
            on_turn(turn)
            if len(requests) > 2 and any(isinstance(update, Finished) for update in turn.updates):
                raise KeyboardInterrupt

        return run(built, requests, turned)

    monkeypatch.setattr(offline, "run", interrupted)
    code, out, _ = bench("--trace", str(tmp_path / "azure.csv"), "--out", str(tmp_path / "requests.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert code == 130
    assert "note: interrupted" in out
    assert "of optimal" not in out, "the machine's peak is measured at the end"
    assert 0 < len(lines) < 12
    assert {(line["interrupted"], line["outcome"], line["output_tokens"]) for line in lines} == {(True, "completed", 3)}


@pytest.mark.parametrize(
    ("flags", "named"),
    [(("--rate", "3"), "--rate"), (("--dtype", "int7"), "model.dtype"), (("--model", "/nowhere"), "model.path")],
)
def test_what_cannot_be_is_a_usage_error(bench: Run, flags: tuple[str, ...], named: str) -> None:
    code, out, error = bench(*flags)
    assert (code, out) == (2, "")
    assert named in error


def test_without_a_server_there_is_nothing_to_measure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench"])
    assert ended.value.code == 2
    assert "--offline" in capsys.readouterr().err


def test_all_requests_have_room_at_once() -> None:
    size = size_up(offline_deployment("millrace", requests=9, tokens=100))
    assert size.blocks * 16 >= 9 * 112
    assert size.max_sequence_tokens >= 100


def test_more_requests_than_a_step_can_decode_take_turns() -> None:
    many = offline_deployment("millrace", requests=100_000, tokens=100)
    assert (many.policy.token_budget, many.policy.max_seqs) == (512, 511)
    assert offline_deployment("millrace", requests=100_000, tokens=100, token_budget=100_000).policy.max_seqs == 4096


def test_a_file_that_cannot_be_written_does_not_cost_the_result(bench: Run) -> None:
    words = ("--requests", "1", "--input-tokens", "8", "--output-tokens", "2", "--peak", "100", "--json")
    code, out, error = bench(*words, "--out", "/no/such/directory/out.jsonl")
    assert (code, json.loads(out)["completed"]) == (2, 1)
    assert "--out = '/no/such/directory/out.jsonl'" in error
