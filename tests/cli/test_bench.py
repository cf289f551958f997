"""`penstock bench` from the command line: what is printed, what is written, and how it exits."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from penstock.cli import main
from penstock.deployment import Deployment
from penstock.errors import InvalidDeployment

Run = Callable[..., tuple[int, str, str]]


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


scripted = _load("scripted_server", Path(__file__).parents[1] / "workload" / "scripted_server.py")
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:15:{second:02d}.0000000,{300 + second},{20 + second % 7}\n" for second in range(30)
)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    # On a busy machine the generator is late at 100 a second and says that its run is invalid, as it should.
    monkeypatch.setattr("penstock.report.result.SEND_DELAY_LIMIT_S", 60.0)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["bench", *arguments])
        seen = capsys.readouterr()
        return int(ended.value.code or 0), seen.out, seen.err

    return call


def test_with_no_load_given_requests_go_one_at_a_time(run: Run) -> None:
    with scripted.serving() as (url, server):
        code, out, _ = run("--url", url, "--requests", "5", "--output-tokens", "6", "--warmup", "0", "--json")
    data = json.loads(out)
    assert code == 0
    assert (data["completed"], data["max_concurrency"], data["peak_in_flight"]) == (5, 1, 1)
    assert (data["total_input_tokens"], data["total_output_tokens"]) == (5 * 128, 30)
    assert len(server.bodies) == 5


def test_the_result_of_a_plain_run_is_the_known_block_with_the_formulas(run: Run) -> None:
    with scripted.serving() as (url, _):
        code, out, _ = run("--url", url, "--rate", "100", "--requests", "10", "--shape", "constant")
    assert code == 0
    assert " Serving Benchmark Result " in out
    assert "TPOT     (last token - first token) / (n - 1)" in out
    assert "us per token event" in out


def test_warm_up_is_sent_but_not_counted(run: Run) -> None:
    with scripted.serving() as (url, server):
        _, out, _ = run("--url", url, "--requests", "4", "--warmup", "3", "--json")
    assert len(server.bodies) == 7
    assert json.loads(out)["completed"] == 4


def test_a_trace_is_replayed_scaled_to_the_context_at_the_rate_asked_for(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "azure.csv"
    file.write_text(AZURE)
    with scripted.serving() as (url, server):
        code, out, _ = run(
            "--url", url, "--trace", str(file), "--scale-lengths-to", "100", "--rate", "200", "--warmup", "0", "--json"
        )  # fmt: skip
    data = json.loads(out)
    assert code == 0
    assert data["completed"] == 30
    assert data["request_rate"] == pytest.approx(200)
    assert all(len(body["prompt"]) + body["max_tokens"] <= 100 for body in server.bodies)
    assert any("to fit 100 tokens" in note for note in data["notes"])


def test_a_trace_alone_keeps_its_own_times_and_can_be_sped_up_and_cut(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "azure.csv"
    file.write_text(AZURE)
    with scripted.serving() as (url, _):
        _, out, _ = run("--url", url, "--trace", str(file), "--speed", "100", "--limit", "20", "--json")
    data = json.loads(out)
    assert data["completed"] == 20
    assert data["request_rate"] == pytest.approx(100)


def test_a_trace_too_long_for_the_server_is_refused_before_anything_is_sent(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "azure.csv"
    file.write_text(AZURE.replace(",329,", ",5000,"))
    with scripted.serving() as (url, server):
        code, out, err = run("--url", url, "--trace", str(file))
    assert (code, out, server.bodies) == (2, "", [])
    assert "--scale-lengths-to 4096" in err


def test_a_sweep_has_a_stage_per_rate(run: Run) -> None:
    with scripted.serving() as (url, _):
        _, out, _ = run("--url", url, "--rates", "50,100", "--requests", "10", "--json")
    stages = json.loads(out)["stages"]
    assert [(stage["stage"], stage["completed"]) for stage in stages] == [("rate 50", 10), ("rate 100", 10)]


def test_load_is_a_share_of_the_capacity_measured_in_the_same_run(run: Run) -> None:
    with scripted.serving() as (url, _):
        _, out, _ = run(
            "--url", url, "--load", "0.2,0.4", "--capacity-stage", "300ms", "--max-concurrency", "8", "--json",
            "--requests", "20", "--output-tokens", "8",
        )  # fmt: skip
    data = json.loads(out)
    capacity = data["capacity"]["request_throughput"]
    assert capacity > 0
    assert [stage["request_rate"] / capacity for stage in data["stages"]] == pytest.approx([0.2, 0.4])


def test_files_are_written_for_every_stage(run: Run, tmp_path: Path) -> None:
    html, rows = tmp_path / "r.html", tmp_path / "r.jsonl"
    with scripted.serving() as (url, _):
        run("--url", url, "--rates", "50,100", "--requests", "10", "--report", str(html), "--out", str(rows))
    assert "<svg" in html.read_text()
    assert len(rows.read_text().splitlines()) == 20


def test_refusals_do_not_fail_a_run_but_failures_do(run: Run) -> None:
    def every_other(status: int) -> Callable[[int, dict[str, Any]], Any]:
        return lambda number, body: status if number % 2 else scripted.well_behaved(number, body)

    for status, exit_code, counted in ((429, 0, "rejected"), (500, 1, "failed")):
        with scripted.serving(every_other(status)) as (url, _):
            code, out, _ = run("--url", url, "--requests", "6", "--warmup", "0", "--json")
        assert (code, json.loads(out)[counted]) == (exit_code, 3)


def test_a_run_without_one_answer_is_invalid_and_exits_with_one(run: Run) -> None:
    with scripted.serving(lambda number, body: 429) as (url, _):
        code, out, _ = run("--url", url, "--requests", "3", "--json")
    data = json.loads(out)
    assert (code, data["valid"], data["invalid_because"]) == (1, False, "no request was completed")


def test_no_server_is_one_line_on_stderr_and_exit_code_one(run: Run) -> None:
    with scripted.serving() as (url, _):
        pass
    code, out, err = run("--url", url)
    assert (code, out) == (1, "")
    assert "Remedy" in err


@pytest.mark.parametrize(
    "flags",
    [
        ("--rate", "2", "--concurrency", "3"),
        ("--rate", "zero"),
        ("--rates", "1,,2"),
        ("--rate", "-1"),
        ("--shape", "sine", "--rate", "1"),
        ("--input-tokens", "many"),
        ("--endpoint", "embeddings"),
        ("--trace", "/no/such/file"),
        ("--turns", "3"),
        ("--duration", "soon"),
        ("--scale-lengths-to", "1"),
        ("--cancel-fraction", "2"),
    ],
)
def test_flags_that_cannot_be_are_usage_errors(run: Run, flags: tuple[str, ...]) -> None:
    with scripted.serving() as (url, server):
        code, out, err = run("--url", url, *flags)
    assert (code, out, server.bodies) == (2, "", [])
    assert err


COUNTS = (
    "--requests", "--concurrency", "--max-concurrency", "--scale-lengths-to", "--max-connections", "--vocab-size",
    "--token-budget", "--threads", "--warmup", "--turns", "--retry",
)  # fmt: skip


def test_counts_are_written_with_units_as_in_the_deployment_file(run: Run) -> None:
    with scripted.serving() as (url, server):
        code, out, _ = run(
            "--url", url, "--requests", "0.02k", "--max-connections", "1Ki", "--vocab-size", "1k", "--warmup", "0",
            "--scale-lengths-to", "0.1k", "--json",
        )  # fmt: skip
    assert code == 0
    assert (json.loads(out)["completed"], len(server.bodies)) == (20, 20)
    assert all(len(body["prompt"]) + body["max_tokens"] <= 100 for body in server.bodies)
    assert 500 < max(max(body["prompt"]) for body in server.bodies) < 1000


@pytest.mark.parametrize("flag", COUNTS)
@pytest.mark.parametrize("wrong", ["25x", "-1", "1.5"])
def test_what_is_no_count_is_refused_in_the_words_of_the_deployment_file(run: Run, flag: str, wrong: str) -> None:
    with pytest.raises(InvalidDeployment) as file:
        Deployment.parse({"workload": {"requests": wrong}})
    code, out, err = run("--url", "http://127.0.0.1:1", flag, wrong)
    assert (code, out) == (2, "")
    assert f"{flag} = {wrong!r}: {file.value.why}. Remedy: " in err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--rate 2 --cv 2.0", "--cv = 2.0"),
        ("--concurrency 2 --shape gamma", "--shape = 'gamma'"),
        ("--rate 2 --trace t.csv --shape gamma", "--shape = 'gamma'"),
        ("--speed 2", "--speed = 2.0"),
        ("--trace t.csv --rate 2 --speed 2", "--speed = 2.0"),
        ("--dequantise", "--dequantise = True"),
        ("--trace t.csv --concurrency 2 --dequantise", "--dequantise = True"),
        ("--think 1s", "--think = '1s'"),
        ("--concurrency 2 --think 1s", "--think = '1s'"),
        ("--trace t.csv --output-tokens 5", "--output-tokens = '5'"),
        ("--lengths-from t.csv --input-tokens 5", "--input-tokens = '5'"),
        ("--trace t.csv --lengths-from t.csv", "--lengths-from = "),
        ("--rate 2 --capacity-stage 1s", "--capacity-stage = '1s'"),
        ("--max-concurrency 64", "--max-concurrency = 64"),
        ("--find-capacity --requests 9", "--requests = 9"),
        ("--endpoint chat --vocab-size 1k", "--vocab-size = 1000"),
        ("--dtype int8", "--dtype = 'int8'"),
        ("--peak 50", "--peak = 50.0"),
        ("--offline --warmup 4", "--warmup = 4"),
        ("--offline --slo-ttft 1s", "--slo-ttft = '1s'"),
        ("--offline --no-ignore-eos", "--ignore-eos = False"),
    ],
)
def test_an_option_without_effect_is_an_error_with_its_value_and_a_remedy(run: Run, flags: str, named: str) -> None:
    given = [] if "--offline" in flags else ["--url", "http://127.0.0.1:1"]
    code, out, err = run(*given, *flags.split())
    assert (code, out) == (2, "")
    assert named in err
    assert "it would have no effect here. Remedy: leave it out, or use it with" in err


def test_a_key_that_would_not_be_sent_is_refused_without_being_shown(run: Run) -> None:
    code, _, err = run("--offline", "--api-key", "sk-secret")
    assert code == 2
    assert "--api-key" in err
    assert "sk-secret" not in err


class Interrupted:
    """A run that gets SIGINT when the server has seen one request more than it answers."""

    def __init__(self, answers: int, *flags: str) -> None:
        held, over = threading.Event(), threading.Event()

        async def hold(server: Any, body: dict[str, Any]) -> None:
            if len(server.bodies) > answers:
                held.set()
                while not over.is_set():
                    await asyncio.sleep(0.01)

        with scripted.serving(hold=hold) as (url, _):
            program = [sys.executable, "-c", "from penstock.cli import main; main()", "bench", "--url", url]
            bench = subprocess.Popen([*program, "--warmup", "0", *flags], stdout=subprocess.PIPE, text=True)
            try:
                assert held.wait(120)
                bench.send_signal(signal.SIGINT)
                self.out, _ = bench.communicate(timeout=120)
            finally:
                over.set()
                bench.kill()
        self.code = bench.returncode


def test_an_interrupt_shows_and_writes_what_was_measured_so_far_and_exits_with_130(tmp_path: Path) -> None:
    rows, html = tmp_path / "requests.jsonl", tmp_path / "report.html"
    run = Interrupted(5, "--requests", "100000", "--out", str(rows), "--report", str(html), "--slo-ttft", "1h")
    assert run.code == 130
    assert " Serving Benchmark Result " in run.out
    assert "note: interrupted" in run.out
    assert "Request goodput (req/s):" in run.out, "the limits of the run hold for its part, too"
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2, 3, 4]
    assert all(line["interrupted"] and line["outcome"] == "completed" for line in lines)
    assert "interrupted" in html.read_text()


def test_stages_that_were_complete_before_an_interrupt_are_there_unmarked(tmp_path: Path) -> None:
    rows = tmp_path / "requests.jsonl"
    run = Interrupted(10, "--rates", "50,100", "--requests", "10", "--out", str(rows), "--json")
    data = json.loads(run.out)
    assert (run.code, data["interrupted"], data["stage"], data["completed"]) == (130, "interrupted", "rate 50", 10)
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(lines) == 10
    assert not any("interrupted" in line for line in lines)


def test_an_interrupt_before_anything_was_measured_writes_nothing(tmp_path: Path) -> None:
    rows = tmp_path / "requests.jsonl"
    run = Interrupted(0, "--requests", "5", "--out", str(rows))
    assert (run.code, run.out, rows.exists()) == (130, "", False)
