"""llama.cpp's llama-batched-bench: it makes its own prompts, all prompts first, then all sequences in lockstep.

Its tokens are random, so there are no first tokens to compare; prefix shares the prompt's common part (-pps) and
processes the own part of 32 tokens as 32 decodes, which a server would do in one go: that task is left out here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import contest


def main() -> None:
    asked = contest.arguments(__doc__)
    program = os.environ.get("LLAMA_BIN", "llama-batched-bench")
    told = False
    for entry in asked.tasks.split(","):
        kind, _, repeats = entry.partition(":")
        work = contest.task(kind, asked.size)
        command = [
            program, "-m", asked.model, "-c", str(work.tokens + 256), "-b", "2048", "-ub", str(asked.budget or 512),
            "-t", str(asked.threads), "-tb", str(asked.threads), "-npp", str(work.own), "-ntg", str(work.output),
            "-npl", str(work.requests), "-fa", "on", "--output-format", "jsonl",
        ]  # fmt: skip
        for repeat in range(int(repeats or 1)):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            if not rows:
                sys.exit(f"llama-batched-bench failed: {done.stderr[-500:]}")
            if not told:
                contest.tell("loaded", version="llama.cpp", settings={"ubatch": asked.budget or 512})
                contest.tell("warm")
                told = True
            contest.tell(
                "task", kind=kind, seconds=rows[-1]["t_pp"] + rows[-1]["t_tg"], seed=asked.seed + repeat, first=[]
            )


if __name__ == "__main__":
    main()
