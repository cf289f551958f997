"""A small real checkpoint, and workers that do what a test tells them to."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from penstock.deployment import Deployment
from penstock.runtime import service
from penstock.runtime.launch import Child, Launcher, OnMark
from penstock.testing import tiny_checkpoint
from tests.forks import SharedForks

Command = tuple[str, ...]
SCRIPTED_WORKER = str(Path(__file__).with_name("scripted_worker.py"))


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
    """The command of a scripted worker (scripted_worker.py); `script` is what it does.

    A service in this process gets a fork that does it instead, unless the script says `fresh`.
    """

    def make(**script: Any) -> Command:
        script.setdefault("marker", str(tmp_path / "marker"))
        return (sys.executable, SCRIPTED_WORKER, json.dumps(script))

    return make


class Told:
    """Forks that find their script in a file: one service at a time."""

    def __init__(self, forks: SharedForks, file: Path, script: str) -> None:
        self.forks, self.file, self.script = forks, file, script

    async def launch(self, link: socket.socket, on_mark: OnMark) -> Child:
        self.file.write_text(self.script)
        return await self.forks.launch(link, on_mark)

    async def close(self) -> None:
        return


@pytest.fixture(scope="session", autouse=True)
def _scripted_workers_are_forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    file, usual = tmp_path_factory.mktemp("scripted") / "script.json", service.launcher_for
    forks = SharedForks(sys.executable, SCRIPTED_WORKER, f"@{file}")

    def launcher_for(command: Sequence[str] | None) -> Launcher:
        scripted = command is not None and command[1:2] == (SCRIPTED_WORKER,)
        if command is None or not scripted or json.loads(command[2]).get("fresh"):
            return usual(command)
        return Told(forks, file, command[2])

    with pytest.MonkeyPatch.context() as here:
        here.setattr(service, "launcher_for", launcher_for)
        yield
    forks.end()
