"""A small real checkpoint, and workers that do what a test tells them to."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.deployment import Deployment
from penstock.testing import tiny_checkpoint

Command = tuple[str, ...]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def deployment() -> Callable[..., Deployment]:
    """A deployment that needs little, with keys laid over it as in `deployment({"server.step_deadline": 1})`."""

    def make(overrides: dict[str, Any] | None = None) -> Deployment:
        small = {"memory.kv_bytes": "4MiB", "policy.max_seqs": 8, "policy.token_budget": 32}
        return Deployment.load(None, {**small, **(overrides or {})})

    return make


@pytest.fixture
def worker(tmp_path: Path) -> Callable[..., Command]:
    """The command of a scripted worker (scripted_worker.py); `script` is what it does."""

    def make(**script: Any) -> Command:
        script.setdefault("marker", str(tmp_path / "marker"))
        return (sys.executable, str(Path(__file__).with_name("scripted_worker.py")), json.dumps(script))

    return make
