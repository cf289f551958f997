"""The list of adapters through everything that can happen to the worker meanwhile; no engine, no process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from penstock.deployment import Deployment, Model
from penstock.errors import InvalidDeployment, RequestFailed, UnsupportedAdapter
from penstock.runtime import wire
from penstock.runtime.adapters import Adapters, inside


class Scene:
    """Adapters over a worker that a test plays: `sent` is what reached it."""

    def __init__(self, directory: Path, **model: Any) -> None:
        for name in ("a", "b"):
            (directory / name).mkdir(exist_ok=True)
        self.sent: list[wire.ToWorker] = []
        self.up = True
        self.free = asyncio.Event()
        self.free.set()
        self.adapters = Adapters(Model(adapter_directory=str(directory), **model), self._send, self._unused)

    def _send(self, message: wire.ToWorker) -> None:
        if self.up:
            self.sent.append(message)

    async def _unused(self, handle: str) -> None:
        await self.free.wait()

    def loaded(self, handle: str) -> None:
        self.adapters.received(wire.AdapterLoaded(handle, 4, 100, f"digest of {handle}"))

    async def load(self, name: str, path: str, **options: Any) -> str:
        """Ask, and let the worker say yes. Returns the handle."""
        asked = asyncio.create_task(self.adapters.load(name, path, **options))
        await asyncio.sleep(0)
        message = self.sent[-1]
        assert isinstance(message, wire.LoadAdapter)
        self.loaded(message.name)
        return (await asked).handle


def play(directory: Path, story: Callable[[Scene], Coroutine[Any, Any, None]], **model: Any) -> None:
    async def run() -> None:
        await asyncio.wait_for(story(Scene(directory, **model)), 60)

    asyncio.run(run())


def test_those_of_the_deployment_are_loaded_by_the_first_worker_and_again_by_the_next(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        first = scene.adapters.to_load()
        assert [(one.path, one.digest) for one in first] == [(str((tmp_path / "a").resolve()), None)]
        scene.loaded(first[0].name)
        scene.adapters.worker_ready()
        assert scene.adapters.handle("x") == first[0].name
        assert [one.digest for one in scene.adapters.to_load()] == [f"digest of {first[0].name}"]

    play(tmp_path, story, adapters={"x": str(tmp_path / "a")})


def test_a_load_survives_a_worker_that_dies_of_it_or_before_it(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        scene.adapters.to_load()
        scene.adapters.worker_ready()
        asked = asyncio.create_task(scene.adapters.load("x", "a"))
        await asyncio.sleep(0)
        again = scene.adapters.to_load()  # it died; the next one is told at its start
        assert [one.name for one in again] == [scene.sent[0].name]  # type: ignore[union-attr]
        scene.up = False
        late = asyncio.create_task(scene.adapters.load("y", "b"))  # asked for while the next one starts
        await asyncio.sleep(0)
        scene.up, before = True, len(scene.sent)
        scene.loaded(again[0].name)
        scene.adapters.worker_ready()
        (message,) = scene.sent[before:]
        assert isinstance(message, wire.LoadAdapter)
        scene.loaded(message.name)
        assert [(await one).name for one in (asked, late)] == ["x", "y"]

    play(tmp_path, story)


def test_a_load_that_ends_every_worker_is_given_up_before_the_service_is(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        asked = asyncio.create_task(scene.adapters.load("x", "a"))
        await asyncio.sleep(0)
        assert len(scene.adapters.to_load()) == 1
        assert scene.adapters.to_load() == []
        with pytest.raises(RequestFailed, match="2 workers ended"):
            await asked
        await scene.load("x", "b")

    play(tmp_path, story)


def test_an_unload_waits_and_is_asked_for_again_of_the_next_worker(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        handle = await scene.load("x", "a")
        scene.free.clear()
        going = asyncio.create_task(scene.adapters.unload("x"))
        await asyncio.sleep(0)
        assert scene.adapters.handle("x") is None
        assert wire.UnloadAdapter(handle) not in scene.sent
        assert [one.name for one in scene.adapters.to_load()] == [handle], "requests have it still"
        scene.adapters.worker_ready()
        scene.loaded(handle)
        assert scene.adapters.handle("x") is None, "loaded again, and still on its way out"
        scene.up = False
        scene.free.set()
        for _ in range(3):
            await asyncio.sleep(0)
        scene.up = True
        scene.adapters.worker_ready()
        assert scene.sent[-1] == wire.UnloadAdapter(handle)
        assert not going.done()
        scene.adapters.received(wire.AdapterGone(handle))
        await going
        assert scene.adapters.to_load() == []

    play(tmp_path, story)


def test_a_name_in_use_can_be_taken_in_place_only(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        first = await scene.load("x", "a")
        with pytest.raises(UnsupportedAdapter, match="name is taken"):
            await scene.adapters.load("x", "b")
        asked = asyncio.create_task(scene.adapters.load("x", "b", in_place=True))
        await asyncio.sleep(0)
        assert scene.adapters.handle("x") == first
        message = scene.sent[-1]
        assert isinstance(message, wire.LoadAdapter)
        scene.loaded(message.name)
        for _ in range(3):
            await asyncio.sleep(0)
        assert scene.adapters.handle("x") == message.name != first
        assert scene.sent[-1] == wire.UnloadAdapter(first)
        scene.adapters.received(wire.AdapterGone(first))
        await asked

    play(tmp_path, story)


def test_what_was_loaded_for_somebody_who_left_is_unloaded(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        asked = asyncio.create_task(scene.adapters.load("one", "a"))
        await asyncio.sleep(0)
        message = scene.sent[-1]
        assert isinstance(message, wire.LoadAdapter)
        asked.cancel()
        await asyncio.wait({asked})
        scene.loaded(message.name)
        assert scene.sent[-1] == wire.UnloadAdapter(message.name)
        scene.adapters.received(wire.AdapterGone(message.name))
        assert scene.adapters.listed() == []
        assert await scene.load("one", "a") != message.name

    play(tmp_path, story)


def test_what_the_worker_refuses_is_told_and_what_it_cannot_load_again_is_dropped(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        asked = asyncio.create_task(scene.adapters.load("x", "a"))
        await asyncio.sleep(0)
        message = scene.sent[-1]
        assert isinstance(message, wire.LoadAdapter)
        scene.adapters.received(wire.AdapterRefused(message.name, "r", "64", "too large", "a smaller one"))
        with pytest.raises(UnsupportedAdapter, match="too large"):
            await asked
        handle = await scene.load("x", "a")
        scene.adapters.received(wire.AdapterRefused(handle, "lora_path", "a", "changed", "another name"))
        assert scene.adapters.handle("x") is None
        waiting = asyncio.create_task(scene.adapters.load("y", "b"))
        await asyncio.sleep(0)
        scene.adapters.close(RequestFailed("the end"))
        with pytest.raises(RequestFailed, match="the end"):
            await waiting

    play(tmp_path, story)


def test_paths_lead_below_the_directory_or_nowhere(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    (inner / "deep" / "one").mkdir(parents=True)
    outer.mkdir()
    (inner / "file").write_text("x")
    (inner / "link").symlink_to(outer)
    (inner / "fine").symlink_to(inner / "deep")
    assert inside(str(inner), "deep/one") == inner / "deep" / "one"
    assert inside(str(inner), str(inner / "deep")) == inner / "deep"
    assert inside(str(inner), "fine/one") == inner / "deep" / "one"
    for path in ("..", "../outer", str(outer), "link", "file", "nothing", ".", "", "deep/../..", "\0", "x" * 5000):
        with pytest.raises(UnsupportedAdapter, match="no such directory"):
            inside(str(inner), path)


def test_the_deployment_is_checked(tmp_path: Path) -> None:
    given = Deployment.load(None, {"model.adapters": "sql=x/y, b=z"})
    assert given.model.adapters == {"sql": "x/y", "b": "z"}
    assert given.model.adapter_room == 8
    assert Deployment().model.adapter_room == 0
    for overrides, words in (
        ({"model.adapters": {"a": "x", "b": "y"}, "model.max_adapters": 1}, "max_adapters: 2"),
        ({"model.adapters": {"a b": "x"}}, "model.adapters"),
        ({"model.adapters": "justaname"}, "model.adapters"),
        ({"model.adapters": {"m": "x"}, "model.name": "m"}, "own name"),
        ({"model.max_rank": 64}, "nothing reads it"),
        ({"model.adapter_directory": "x"}, "admin_port"),
    ):
        with pytest.raises(InvalidDeployment, match=words):
            Deployment.load(None, overrides)
