"""`penstock simulate` and `inspect` as a user meets them: files, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Penstock
from tests.cli.program import children, environment

FILE = """
model: {path: llama-3-8b}
hardware: {name: h100-sxm}
twin: {price: roofline}
workload: {rate: 30, requests: 200, output_tokens: "40"}
slo: {ttft: 500ms}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "deployment.yaml"
    path.write_text(FILE)
    return path


def test_table_report_and_timeline(penstock: Penstock, file: Path, tmp_path: Path) -> None:
    report, timeline = tmp_path / "out.html", tmp_path / "out.json"
    table = penstock("simulate", "-f", file, "--report", report, "--timeline", timeline).stdout
    assert "Median TTFT (ms):" in table
    assert "Time on assumed prices:" in table
    page = report.read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", ""), "the report needs nothing from elsewhere"
    events = json.loads(timeline.read_text())["traceEvents"]
    assert {"X", "C", "M"} <= {event["ph"] for event in events}


def test_json_is_one_object_and_set_lays_over_the_file(penstock: Penstock, file: Path) -> None:
    found = json.loads(penstock("simulate", "-f", file, "--json", "--set", "requests=77").stdout)
    assert found["completed"] == 77
    assert found["request_goodput"] is not None


def test_a_sweep_gives_each_point_what_it_gives_alone(penstock: Penstock, file: Path) -> None:
    swept = json.loads(penstock("simulate", "-f", file, "--vary", "rate=10,40", "--json").stdout)["points"]
    assert [point["varied"] for point in swept] == [{"workload.rate": "10"}, {"workload.rate": "40"}]
    alone = json.loads(penstock("simulate", "-f", file, "--set", "rate=40", "--json").stdout)
    keep = {"p99_ttft_ms", "p99_tpot_ms", "duration", "steps"}
    assert {key: swept[1][key] for key in keep} == {key: alone[key] for key in keep}


def test_a_point_that_cannot_work_fails_alone(penstock: Penstock, file: Path) -> None:
    run = penstock("simulate", "-f", file, "--vary", "hardware.name=h100-sxm,t4", "--json", expect=1)
    good, bad = json.loads(run.stdout)["points"]
    assert good["completed"] == 200
    assert "t4" in bad["varied"]["hardware.name"]
    assert "remedy" in bad["error"].lower()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simulate", "lama-3-8b"], "llama-3-8b"),
        (["simulate", "llama-3-8b", "--hardware.name", "h10-sxm"], "h100-sxm"),
        (["simulate", "llama-3-70b", "--hardware.name", "h100-sxm"], "tensor_parallel: 2"),
        (["simulate", "--limit", "wall=soon"], "wall=60s"),
        (["simulate", "--vary", "rate=4:1"], "low:high"),
        (["simulate", "--set", "nonsense=1"], "docs/deployment.md"),
        (["simulate", "--vary", "rate=1:inf"], "low:high"),
        (["simulate", "--vary", "rate=1,2", "--limit", "time=1s"], "wall=60s"),
        (["simulate", "--vary", "rate=1,2", "--token-times"], "leave out --vary"),
        (["simulate", "--processes", "2"], "--vary"),
        (["simulate", "--vary", "rate=1,2", "--ray", "auto", "--processes", "2"], "without --ray"),
        (["simulate", "--server.port", "9"], "only a server reads it"),
        (["simulate", "--set", "hardware.threads=9"], "only a server reads it"),
        (["simulate", "--workload.shared-prefix.groups", "2"], "shared_prefix.tokens"),
        (["inspect", "fit", "llama-3-8b", "--dtype", "fp7"], "bfloat16"),
        (["inspect", "fit", "llama-3-8b", "--context", "0"], "8192"),
        (["inspect", "model", "llama-3-8b", "--tp", "2"], "--tensor-parallel = 2: it would have no effect here"),
        (["inspect", "hardware", "h100-sxm", "--context", "32k"], "--context = 32000: it would have no effect here"),
        (["inspect", "model", "--dtype", "fp8"], "--dtype = 'fp8': it would have no effect here"),
        (["inspect", "modle"], "model, hardware, fit"),
        (["inspect", "hardware", "h10-sxm"], "h100-sxm"),
        (["reproduce", "gens"], "genz"),
    ],
)
def test_a_mistake_ends_with_2_and_the_remedy(penstock: Penstock, words: list[str], said: str) -> None:
    assert said in penstock(*words, expect=2).stderr


@pytest.mark.parametrize(
    "words",
    [["model", "deepseek-v3"], ["hardware", "h100-sxm"], ["fit", "llama-3-70b", "--tp", "4"], ["model"], ["hardware"]],
)
def test_inspect_speaks_table_and_json(penstock: Penstock, words: list[str]) -> None:
    assert len(penstock("inspect", *words).stdout.splitlines()) > 5
    assert json.loads(penstock("inspect", *words, "--json").stdout)


@pytest.mark.parametrize("example", ["h100.yaml", "cluster.yaml"])
def test_the_examples_run(penstock: Penstock, example: str) -> None:
    path = Path(__file__).parents[2] / "examples" / example
    found = json.loads(penstock("simulate", "-f", path, "--set", "requests=60", "--json").stdout)
    assert found["completed"] == 60


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_gives_the_partial_result_marked_and_130(file: Path, tmp_path: Path) -> None:
    steps = tmp_path / "steps.json"
    run = subprocess.Popen(
        [sys.executable, "-m", "penstock", "simulate", "-f", str(file), "--json", "--set", "requests=50000000",
         "--timeline", str(steps)],
        env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: steps.exists() and steps.stat().st_size > 1_000_000)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    found: dict[str, Any] = json.loads(out)
    assert found["interrupted"] == "interrupted"
    assert found["completed"] > 0


def test_ctrl_c_ends_a_sweep_with_what_is_done(file: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-m", "penstock", "simulate", "-f", str(file), "--json", "--set", "requests=50000000",
         "--vary", "rate=10,20,30", "--processes", "2"],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: len(children(run.pid)) >= 2)
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert json.loads(out) == {"points": [], "interrupted": True}
    assert "Traceback" not in err
