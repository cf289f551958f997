"""Trains Millrace from nothing: python -m recipes.millrace.train --out DIR. About an hour on two CPU cores.

The forward pass runs on a bfloat16 copy of the weights, the copy that ships; the float32 originals take the updates.
Matrices inside the layers are updated by Muon (Jordan et al., 2024), the embedding and the norms by AdamW. The
learning rate warms up, stays, and decays over the last fifth (WSD; Hu et al., MiniCPM, 2024), so until the decay begins
a run does not depend on how long it will be: stopped there and resumed with other `--steps`, it equals a run of that
length.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from copy import deepcopy
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn import functional

from recipes.millrace.checkpoint import export, load_run, save_run
from recipes.millrace.model import Millrace, Shape
from recipes.millrace.split import Split
from recipes.millrace.stream import batch, documents
from recipes.millrace.tokenizer import train_tokenizer

TOKENIZER_DOCUMENTS = 8_000
WARMUP_STEPS = 60
DECAY_SHARE = 0.2
MUON_RATE, ADAM_RATE = 4e-3, 3e-3


def rate(step: int, steps: int) -> float:
    """The share of the peak learning rate at this step: up, flat, and down to nearly nothing.

    >>> [round(rate(step, 1000), 2) for step in (0, 59, 500, 900, 999)]
    [0.02, 1.0, 1.0, 0.5, 0.01]
    """
    return min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / (DECAY_SHARE * steps))


def make_optimizers(model: Millrace) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)]


def train(out: Path, steps: int, seed: int, save_every: int, console: Console) -> None:
    """Runs to `steps`, from the last saved state under `out` if there is one."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(itertools.islice(documents(f"tokenizer/{seed}", Split.TRAIN), TOKENIZER_DOCUMENTS))
    master = Millrace(Shape())
    optimizers = make_optimizers(master)
    done, seconds_before = load_run(out / "run", master, optimizers)
    worker = deepcopy(master).to(torch.bfloat16)
    started, trained = time.monotonic(), 0

    columns = (
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("train", total=steps, completed=done, loss=float("nan"), speed=0.0)
        for step in range(done, steps):
            tokens, weights = batch(tokenizer, seed, step)
            trained += tokens[:, 1:].numel()
            logits = worker(tokens[:, :-1])
            nats = functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none")
            loss = (nats * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
            loss.backward()  # type: ignore[no-untyped-call]
            for original, copy in zip(master.parameters(), worker.parameters(), strict=True):
                assert copy.grad is not None
                original.grad, copy.grad = copy.grad.float(), None
            torch.nn.utils.clip_grad_norm_(master.parameters(), 1.0)
            for optimizer, peak in zip(optimizers, (MUON_RATE, ADAM_RATE), strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = peak * rate(step, steps)
                optimizer.step()
            with torch.no_grad():
                for original, copy in zip(master.parameters(), worker.parameters(), strict=True):
                    copy.copy_(original)

            seconds = time.monotonic() - started
            speed = trained / seconds
            progress.update(task, advance=1, loss=loss.item(), speed=speed)
            if (step + 1) % 20 == 0:
                console.log(f"step {step + 1} loss {loss.item():.3f} tokens/s {speed:,.0f}")
            if (step + 1) % save_every == 0 or step + 1 == steps:
                save_run(out / "run", step + 1, seconds_before + seconds, master, optimizers)
                export(out, worker, tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train Millrace from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="where the model and the state of the run go")
    parser.add_argument("--steps", type=int, default=4_000, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=50, help="steps between saved states")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    train(given.out, given.steps, given.seed, given.save_every, Console(stderr=True))


if __name__ == "__main__":
    main()
