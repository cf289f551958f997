"""AIConfigurator's own estimate of the same rows.

Run by benchmarks/silicon.py under an interpreter that has the package aiconfigurator installed; rows come as JSON lines
on stdin, estimates go as JSON lines to stdout.

Its estimate is static: batch size = concurrency per attention group, aggregated serving (`mode="agg"`).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import warnings

NAMES = {
    "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Meta-Llama-3.1-8B",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-ai/DeepSeek-R1",
    "nvidia/DeepSeek-V3.1-NVFP4": "deepseek-ai/DeepSeek-V3",
    "nvidia/Qwen3-32B-NVFP4": "Qwen/Qwen3-32B",
}
"""Names in the rows that it knows under another."""


def main() -> None:
    """One answer a line: {"id", "ttft", "tpot"} in seconds, or {"id", "error"}."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    from aiconfigurator.cli.api import cli_estimate

    for line in sys.stdin:
        row = json.loads(line)
        asked = dict(row["ask"])
        asked["model_path"] = NAMES.get(asked["model_path"], asked["model_path"])
        answer: dict[str, object] = {"id": row["id"]}
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                found = cli_estimate(mode="agg", **asked)
            answer |= {"ttft": found.ttft / 1e3, "tpot": found.tpot / 1e3}
        except Exception as failed:  # noqa: BLE001  whatever it raises is its answer for this row
            answer["error"] = f"{type(failed).__name__}: {failed}"[:200]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
