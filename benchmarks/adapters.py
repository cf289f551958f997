"""What adapters cost a decode step: none loaded, loaded and unused, and a batch spread over 1, 4 and 16 of them.

    make bench-adapters

The model in the box, float32, `--batch` sequences that decode, rank `--rank` on every product of every layer. The base
model's products are the same in all cases; the rest is two thin products per adapter, place and layer. The first case
must not differ from the second by more than noise: a step without adapters has no work for them.
Times are CPU time of one thread, planning included, so that other work on the machine disturbs them little. The cases
take turns, `--rounds` times, so that a machine that drifts drifts for all. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from penstock.catalog import resolve_model
from penstock.control.policy import build_replica
from penstock.control.request import Request, Sampling
from penstock.engine.architecture import Architecture
from penstock.engine.engine import Engine
from penstock.engine.loader import LoadedModel, load_model
from penstock.engine.lora.targets import targets
from penstock.runtime.local import Loop

PROMPT, OUTPUT, BLOCK = 32, 48, 16


def write_adapter(directory: Path, architecture: Architecture, rank: int) -> Path:
    """A random adapter on every target."""
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))
    tensors = {}
    for module, target in targets(architecture).items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = 0.01 * torch.randn(rank, target.inputs)
        tensors[f"base_model.model.{module}.lora_B.weight"] = 0.01 * torch.randn(target.outputs, rank)
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def step_ms(model: LoadedModel, paths: list[Path], used: int, batch: int) -> float:
    """Median of the decode steps at full batch, sequences spread over the first `used` adapters."""
    blocks = batch * -(-(PROMPT + OUTPUT) // BLOCK)
    engine = Engine(model, blocks=blocks, block_tokens=BLOCK, max_seqs=batch, max_adapters=max(1, len(paths)))
    for number, path in enumerate(paths):
        engine.load_adapter(str(number), path)
    replica = build_replica(
        blocks=blocks, block_tokens=BLOCK, max_sequence_tokens=PROMPT + OUTPUT, max_seqs=batch,
        token_budget=batch * PROMPT + 1, watermark=0.0,
    )  # fmt: skip
    loop = Loop(replica, engine, clock=lambda: 0.0)
    for number in range(batch):
        adapter = str(number % used) if used else ""
        prompt = tuple(torch.randint(2, model.architecture.vocab_size, (PROMPT,)).tolist())
        request = Request(
            id=str(number), prompt=prompt, max_tokens=OUTPUT, adapter=adapter, sampling=Sampling(temperature=0)
        )
        loop.submit(request)
    seconds = []
    began = time.process_time()
    for turn in loop.run():
        ended = time.process_time()
        if turn.step.decoding == batch and not turn.step.chunks:
            seconds.append(ended - began)
        began = ended
    engine.close()
    return statistics.median(seconds) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = load_model(resolve_model("millrace"))
    cases = {
        "none loaded": (0, 0),
        "16 loaded, none used": (16, 0),
        "1 used": (16, 1),
        "4 used": (16, 4),
        "16 used": (16, 16),
    }
    found: dict[str, list[float]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as folder:
        paths = [write_adapter(Path(folder, str(n)), model.architecture, given.rank) for n in range(16)]
        for _ in range(given.rounds):
            for name, (loaded, used) in cases.items():
                found[name].append(step_ms(model, paths[:loaded], used, given.batch))
    best = {name: min(values) for name, values in found.items()}
    for name, values in found.items():
        share = best[name] / best["none loaded"]
        print(f"{name:22} {best[name]:6.2f} ms  x {share:4.2f}  ({min(values):.2f} to {max(values):.2f})")
    print(json.dumps({"batch": given.batch, "rank": given.rank, "step_ms": best}))


if __name__ == "__main__":
    main()
