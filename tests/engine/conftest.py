"""Checkpoints and the output `transformers` gives for them, made once per session."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_driver import reference

from penstock.testing import tiny_checkpoint

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
if not torch.cuda.is_available():
    # Before anything imports the kernels: they are compiled or interpreted as this says then.
    os.environ.setdefault("TRITON_INTERPRET", "1")

Make = Callable[..., Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """checkpoint(family, **overrides): a tiny checkpoint, one for equal arguments."""
    made: dict[str, Path] = {}

    def make(family: str, **overrides: Any) -> Path:
        key = f"{family} {sorted(overrides.items())!r}"
        if key not in made:
            made[key] = tiny_checkpoint(family, tmp_path_factory.mktemp(family), **overrides)
        return made[key]

    return make


@pytest.fixture(scope="session")
def expected() -> Callable[[Path, list[list[int]], int], list[list[int]]]:
    """expected(path, prompts, max_tokens): what `transformers` generates greedily, remembered per prompt."""
    known: dict[tuple[Path, tuple[int, ...], int], list[int]] = {}

    def generate(path: Path, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        keys = [(path, tuple(prompt), max_tokens) for prompt in prompts]
        new = [prompt for key, prompt in zip(keys, prompts, strict=True) if key not in known]
        for prompt, output in zip(new, reference(path, new, max_tokens), strict=True):
            known[path, tuple(prompt), max_tokens] = output
        return [known[key] for key in keys]

    return generate
