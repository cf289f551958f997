"""ONNX Runtime GenAI: static batches of equal prompts (its continuous batching shares no prefix)."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import contest

BATCH = 32


def load(asked: argparse.Namespace) -> tuple[contest.Generate, str, dict[str, Any]]:
    """A directory that its model builder made, with the number of threads written into a copy of its settings."""
    import numpy as np
    import onnxruntime_genai

    with tempfile.TemporaryDirectory(dir=Path(asked.model).parent) as folder:
        for file in Path(asked.model).iterdir():
            if file.name == "genai_config.json":
                settings = json.loads(file.read_text(encoding="utf-8"))
                settings["model"]["decoder"]["session_options"]["intra_op_num_threads"] = asked.threads
                settings["model"]["eos_token_id"] = 1
                Path(folder, file.name).write_text(json.dumps(settings), encoding="utf-8")
            else:
                try:
                    os.link(file, Path(folder, file.name))
                except OSError:
                    shutil.copy(file, folder)
        model = onnxruntime_genai.Model(folder)

    def generate(prompts: contest.Prompts, output: int) -> list[list[int]]:
        outputs: list[list[int]] = []
        for first in range(0, len(prompts), BATCH):
            batch = prompts[first : first + BATCH]
            length = len(batch[0])
            parameters = onnxruntime_genai.GeneratorParams(model)
            parameters.set_search_options(
                batch_size=len(batch), max_length=length + output, min_length=length + output, do_sample=False
            )
            generator = onnxruntime_genai.Generator(model, parameters)
            generator.append_tokens(np.array(batch, dtype=np.int32))
            while not generator.is_done():
                generator.generate_next_token()
            outputs += [list(generator.get_sequence(row)[length:]) for row in range(len(batch))]
        return outputs

    return generate, getattr(onnxruntime_genai, "__version__", "unknown"), {"batch": BATCH}


if __name__ == "__main__":
    contest.main(contest.arguments(__doc__), load)
