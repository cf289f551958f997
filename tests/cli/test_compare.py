"""`penstock compare` over what the other verbs write: a server's own recording, its client's requests, the twin's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.cli.hosting import in_background
from penstock.deployment import Deployment
from penstock.report.compare_read import read_run
from penstock.report.latency import e2e_s, ttft_s

from .conftest import Run

SIMULATED = ("simulate", "llama-3-8b", "--hardware.name", "h100-sxm", "--twin.price", "roofline",
             "--workload.rate", "30", "--workload.output-tokens", "40", "--workload.requests", "120")  # fmt: skip


def test_a_real_run_as_its_client_and_as_control_saw_it(run: Run, tmp_path: Path) -> None:
    record, requests, whole = (tmp_path / name for name in ("served.jsonl.gz", "client.jsonl", "client.json"))
    served = {"server": {"port": 0, "record": str(record)}, "hardware": {"threads": 1}}
    with in_background(Deployment.parse(served)) as url:
        flags = ["--requests", "6", "--warmup", "0", "--input-tokens", "40"]
        _, text, _ = run("bench", "--url", url, *flags, "--output-tokens", "8", "--json", "--out", requests)
    whole.write_text(text)

    page = tmp_path / "page.html"
    code, out, _ = run("compare", requests, record, "--json", "--report", page)
    found = json.loads(out)
    assert code == 0
    # The client asks once, before it measures, in which form the server takes prompts.
    assert [found[side]["completed"] for side in "ab"] == [6, 7]
    assert found["warnings"][:2] == ["requests differ: A 6, B 7", "completed requests differ: A 6, B 7"]
    assert [found["distances"]["ttft"][key] for key in ("a_count", "b_count")] == [6, 7]
    assert found["b"]["model"] == "millrace"
    assert page.read_text().count("<polyline") == 8

    seen, known = read_run(str(requests)).records, read_run(str(record)).records
    assert seen is not None
    assert known is not None
    for client, control in zip(seen, known[1:], strict=True):
        assert (client.prompt_tokens, client.output_tokens) == (control.prompt_tokens, control.output_tokens) == (40, 8)
        assert len(control.token_s) == 8
        # What control saw lies within what the client saw: since the request was due, as the note of when it was sent
        # may come late on a busy machine.
        assert 0 < (ttft_s(control) or 0) < client.token_s[0] - client.arrival_s
        assert 0 < (e2e_s(control) or 0) < client.end_s - client.arrival_s, "the last token may bring no text"

    code, out, _ = run("compare", whole, requests)
    assert code == 0
    assert "Median TTFT (ms):" in out
    assert all(line.endswith(("+0.0 %", "-0.0 %")) for line in out.splitlines() if " (ms): " in line)

    code, out, _ = run("replay", record)
    assert code == 0
    assert "steps identical" in out
    assert "note: A recorded where control sees it, without HTTP; B replayed by the twin" in out
    rows = [line for line in out.splitlines() if " (ms): " in line]
    assert len(rows) == 16
    assert all(line.endswith("+0.0 %") for line in rows)
    code, out, _ = run("replay", record, "--json")
    latency = json.loads(out)["latency"]
    assert latency["warnings"] == []
    assert {one["relative"] for one in latency["metrics"].values()} <= {0.0}


@pytest.fixture
def pair(run: Run, tmp_path: Path) -> tuple[Path, Path]:
    """A simulation, and the same on a server that gets half as many requests again."""
    found = []
    for name, rate in (("a", "30"), ("b", "45")):
        code, text, _ = run(*SIMULATED, "--workload.rate", rate, "--json", "--out", tmp_path / f"{name}.jsonl")
        assert code == 0
        (tmp_path / f"{name}.json").write_text(text)
        found.append(tmp_path / f"{name}.json")
    return found[0], found[1]


def test_a_metric_that_is_further_off_than_allowed_fails(run: Run, pair: tuple[Path, Path]) -> None:
    a, b = pair
    code, out, _ = run("compare", a, b)
    assert code == 0, "nothing is judged unless that is asked for"
    assert "warning: arrival rates differ" in out
    assert run("compare", a, a, "--fail-over", "0%")[0] == 0
    code, out, _ = run("compare", a, b, "--fail-over", "10%", "--metric", "requests_per_s", "--metric", "ttft_p50")
    assert code == 1
    assert "over 10%: requests_per_s +4" in out
    code, out, _ = run("compare", a, b, "--fail-over", "60%", "--metric", "p50_ttft_ms", "--json")
    judged = json.loads(out)
    assert (code, judged["fail_over"], judged["over"]) == (0, 0.6, [])
    code, out, _ = run("compare", a, b, "--fail-over", "1%", "--json")
    assert code == 1
    assert {"requests_per_s", "duration"} <= set(json.loads(out)["over"])


def test_the_requests_of_a_simulation_compare_with_its_own_result(run: Run, pair: tuple[Path, Path]) -> None:
    a, _ = pair
    code, out, _ = run("compare", a, a.with_suffix(".jsonl"), "--fail-over", "1%")
    assert code == 0, out
    assert "is over 1%" in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--metric", "ttft_p50"), "--fail-over 10%"),
        (("--fail-over", "10"), "not a percentage"),
        (("--fail-over", "-3%"), "not a percentage"),
        (("--fail-over", "nan%"), "not a percentage"),
        (("--fail-over", "5%", "--metric", "ttft"), "no such metric"),
        (("--fail-over", "5%", "--metric", "goodput"), "has none"),
        (("--report", "/nowhere/page.html"), "--report"),
    ],
)
def test_what_cannot_be_judged_is_a_usage_error(
    run: Run, pair: tuple[Path, Path], flags: tuple[str, ...], said: str
) -> None:
    code, _, error = run("compare", *pair, *flags)
    assert code == 2
    assert said in error


def test_a_file_of_another_kind_is_named_with_what_would_do(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("slow")
    code, out, error = run("compare", tmp_path / "notes.txt", tmp_path / "notes.txt")
    assert (code, out) == (2, "")
    assert "notes.txt" in error
    assert "--server.record" in error


def test_a_sweep_has_no_single_run_whose_requests_could_be_written(run: Run, tmp_path: Path) -> None:
    code, _, error = run(*SIMULATED, "--vary", "rate=1,2", "--out", tmp_path / "out.jsonl")
    assert code == 2
    assert "--out" in error
