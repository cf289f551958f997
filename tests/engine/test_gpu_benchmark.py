"""The benchmark of a GPU runs where there is none: no second on one is lost to a slip of the script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_engine.py"

pytest.importorskip("triton", reason="Triton is not installed: pip install 'penstock[dev]'")


def run(*flags, directory):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *flags, "--out", str(directory)], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}, timeout=280,
    )  # fmt: skip


def test_all_requests_are_served_and_the_last_line_is_json(tmp_path):
    done = run(
        "--device", "cpu", "--shape", "tiny", "--parts", "serve,latency", "--workloads", "30x6x7x4x40",
        "--sustain-s", "0", "--profile-at", "0", directory=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    served = found["bfloat16 30x6x7x4x40"]
    assert (served["finished"], served["prompt_tokens"], served["output_tokens"]) == (7, 210, 42)
    assert served["share_of_optimal"] > 0
    assert all(value > 0 for value in found["bfloat16 decode step"].values())
    (written,) = tmp_path.iterdir()
    assert json.loads(written.read_text())["bfloat16 30x6x7x4x40"]["finished"] == 7


def test_parameters_are_those_of_the_published_model(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu_model

    assert gpu_model.parameters("8b") == 8_030_261_248
