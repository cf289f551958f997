"""Two kinds of files: the model as it ships (Hugging Face layout), and the run as it resumes (weights, moments, step).

Both are safetensors and JSON; a checkpoint is data and never code. Files appear whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from recipes.millrace.model import Millrace, Shape
from recipes.millrace.tokenizer import BEGIN, END, PAD, SPECIALS, save_tokenizer


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    partial = path.with_suffix(".partial")
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in tensors.items()}, partial, metadata={"format": "pt"}
    )
    partial.chmod(0o644)  # safetensors writes for the owner alone
    os.replace(partial, path)


def export(out: Path, model: Millrace, tokenizer: Tokenizer) -> None:
    """Writes the model in bfloat16 as any engine for Llama expects to find it."""
    out.mkdir(parents=True, exist_ok=True)
    begin, end, pad = (SPECIALS.index(token) for token in (BEGIN, END, PAD))
    write_json(out / "config.json", model.shape.config(bos=begin, eos=end, pad=pad))
    generation = {"bos_token_id": begin, "eos_token_id": [end], "pad_token_id": pad, "do_sample": False}
    write_json(out / "generation_config.json", generation)
    save_tokenizer(tokenizer, out, model.shape.context)
    write_tensors(out / "model.safetensors", {name: w.to(torch.bfloat16) for name, w in model.state_dict().items()})


def load(directory: Path, dtype: torch.dtype = torch.bfloat16) -> tuple[Millrace, Tokenizer]:
    """The model and tokenizer of an exported directory."""
    model = Millrace(Shape.of(json.loads((directory / "config.json").read_text())))
    model.load_state_dict(load_file(directory / "model.safetensors"))
    return model.to(dtype).eval(), Tokenizer.from_file(str(directory / "tokenizer.json"))


def save_run(folder: Path, step: int, seconds: float, model: Millrace, optimizers: list[torch.optim.Optimizer]) -> None:
    """What a run needs to go on as if it had never stopped.

    The data need nothing: a batch is a function of its number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"weight/{name}": value for name, value in model.state_dict().items()}
    for index, optimizer in enumerate(optimizers):
        for position, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"moment/{index}/{position}/{name}": torch.as_tensor(value) for name, value in moments.items()}
    name = f"step-{step}.safetensors"
    write_tensors(folder / name, tensors)
    write_json(folder / "run.partial", {"step": step, "seconds": round(seconds, 1), "file": name})
    os.replace(folder / "run.partial", folder / "run.json")
    for old in folder.glob("step-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_run(folder: Path, model: Millrace, optimizers: list[torch.optim.Optimizer]) -> tuple[int, float]:
    """Restores what `save_run` wrote. Returns the steps done and the seconds they took: (0, 0.0) for a fresh start."""
    if not (folder / "run.json").exists():
        return 0, 0.0
    run = json.loads((folder / "run.json").read_text())
    tensors = load_file(folder / run["file"])
    model.load_state_dict(
        {name.removeprefix("weight/"): t for name, t in tensors.items() if name.startswith("weight/")}
    )
    for index, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        for name, tensor in tensors.items():
            if name.startswith(f"moment/{index}/"):
                _, _, position, moment = name.split("/")
                state["state"].setdefault(int(position), {})[moment] = tensor
        optimizer.load_state_dict(state)
    return run["step"], run["seconds"]
