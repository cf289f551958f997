"""The process that tries grammars is killed or stopped from outside: whoever asked gets the answer all the same."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import pytest

from penstock.engine.guide import grammar
from penstock.errors import InvalidRequest
from penstock.runtime.grammar_check import GrammarCheck, GrammarJob


def job(pattern: str) -> GrammarJob:
    return GrammarJob(field="f", grammar=grammar.regex(pattern))


async def pid_of(checker: GrammarCheck) -> int:
    await checker.check(job("first"))
    process = checker._process
    assert process is not None
    return process.pid


def test_killed_while_it_rests_while_it_works_and_while_it_starts() -> None:
    async def story() -> None:
        checker = GrammarCheck()
        try:
            os.kill(await pid_of(checker), signal.SIGKILL)
            assert await checker.check(job("rests")) == job("rests").grammar

            assert checker._process is not None
            pid = checker._process.pid
            os.kill(pid, signal.SIGSTOP)  # so that it has the job and cannot be done with it
            asked = asyncio.create_task(checker.check(job("works")))
            await asyncio.sleep(0.1)
            assert not asked.done()
            os.kill(pid, signal.SIGKILL)
            assert await asked == job("works").grammar

            await checker.close()
            asked = asyncio.create_task(checker.check(job("starts")))
            while checker._process is None:
                await asyncio.sleep(0)
            os.kill(checker._process.pid, signal.SIGKILL)
            assert await asked == job("starts").grammar
        finally:
            await checker.close()

    asyncio.run(story())


def test_stopped_for_longer_than_it_may_take_it_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        checker = GrammarCheck()
        try:
            os.kill(await pid_of(checker), signal.SIGSTOP)
            with monkeypatch.context() as patched:
                patched.setattr(checker, "_limit_s", 0.1)
                with pytest.raises(InvalidRequest, match="takes more than"):
                    await checker.check(job("x"))
            assert await checker.check(job("y")) == job("y").grammar
        finally:
            await checker.close()

    asyncio.run(story())


@pytest.mark.parametrize("when", ["at once", "before the first line"])
def test_what_is_killed_again_is_given_up(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    async def story() -> None:
        started = []
        real = asyncio.create_subprocess_exec

        async def short_lived(*command: str, **more: object) -> asyncio.subprocess.Process:
            process = await real("/bin/sh", "-c", "kill -KILL $$", **more)  # type: ignore[arg-type]
            started.append(process)
            if when == "before the first line":
                with contextlib.suppress(ChildProcessError):  # reaped by now
                    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            return process

        monkeypatch.setattr(asyncio, "create_subprocess_exec", short_lived)
        for _ in range(100):  # once in some hundred it was reaped by `kill`, and what had ended it was not known
            started.clear()
            checker = GrammarCheck()
            with pytest.raises(InvalidRequest):
                await checker.check(job("x"))
            assert len(started) == 2
            await checker.close()

    asyncio.run(story())
