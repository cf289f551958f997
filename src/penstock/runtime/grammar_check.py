"""Tries what a client wants of the text in a process of its own (engine/guide/checker.py), for two seconds of CPU.

The event loop waits for a line; a grammar that hangs costs one process, which is ended and started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from penstock.errors import InvalidRequest, Overloaded
from penstock.runtime.patience import patience

LIMIT_S: Final = 2.0
"""CPU seconds of one job."""
PATIENCE: Final = 5
"""Times the limit that is waited for an answer, since the machine may be busy with others."""
START_S: Final = 30.0
"""The first answer of a new process: a busy machine may take a while to load it."""
MAX_WAITING: Final = 64
MAX_TENANT_WAITING: Final = 32
"""Of one tenant, so that there is room for another's."""
BAD_S: Final = 10.0
"""For so long what was refused is refused again unseen."""
_MAX_BAD: Final = 256
_MIN_RETRY_S: Final = 0.05
_RECENT: Final = 0.2
"""Weight of the newest job in what one takes."""
KEPT_BYTES: Final = 16 * 2**20
"""Of grammars that were good."""
_LARGE: Final = 50_000
_MAX_LINE: Final = 16 * 2**20
_REAP_S: Final = 1.0
"""A process whose output has ended is gone in so long."""
_COMMAND: Final = (sys.executable, "-m", "penstock.engine.guide.checker")


@dataclass(frozen=True, slots=True)
class GrammarJob:
    """What to try. Fields as in checker.py; `field` is what an error of the whole is about."""

    field: str
    grammar: str = ""
    schemas: Sequence[tuple[str, Any, bool]] = ()
    lark: str = ""
    regex: str = ""
    code: str = "invalid_schema"

    def line(self, limit_s: float) -> bytes:
        """As the checker reads it."""
        job = {
            "seconds": limit_s,
            "schemas": list(self.schemas),
            "grammar": self.grammar,
            "lark": self.lark,
            "regex": self.regex,
        }
        return json.dumps(job).encode() + b"\n"


def _asked(job: GrammarJob, limit_s: float) -> tuple[bytes, bytes]:
    """The line for the checker, and its hash."""
    line = job.line(limit_s)
    return line, hashlib.sha256(line).digest()


class _Tenant:
    """The turns of one tenant, and how many of its jobs wait or are tried."""

    __slots__ = ("one_at_a_time", "waiting")

    def __init__(self) -> None:
        self.one_at_a_time, self.waiting = asyncio.Lock(), 0


class GrammarCheck:
    """One process, started with the first job and ended with this one. All methods belong to one event loop."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._process: asyncio.subprocess.Process | None = None
        self._was_killed = False
        """By somebody else, in the last exchange."""
        self._one_at_a_time = asyncio.Lock()
        self._tenants: dict[str, _Tenant] = {}
        self._waiting = 0
        self._job_s = 0.0
        """What one job took of late."""
        self._good: OrderedDict[bytes, str] = OrderedDict()
        """By the hash of what was asked."""
        self._good_bytes = 0
        self._bad: OrderedDict[bytes, tuple[float, dict[str, str] | None]] = OrderedDict()
        """Until when, and what the checker said."""

    async def check(self, job: GrammarJob, tenant: str = "") -> str:
        """The grammar to use. What was good once is not tried again, and what was not, not at once.

        Tenants take turns: however many jobs one has, the next of another waits for one of them.

        Raises:
            InvalidRequest: the field, or the place in its schema, that cannot be used.
            Overloaded: too many wait.
        """
        large = len(job.grammar) + len(job.lark) > _LARGE
        work = partial(_asked, job, self._limit_s)
        line, digest = await asyncio.to_thread(work) if large else work()
        known = self._known(job, digest)
        if known is not None:
            return known
        turns = self._tenants.get(tenant) or _Tenant()
        if self._waiting >= MAX_WAITING or turns.waiting >= MAX_TENANT_WAITING:
            wait_s = max(_MIN_RETRY_S, turns.waiting * self._job_s)
            raise Overloaded(
                f"{self._waiting} grammars wait to be checked, {turns.waiting} of them yours; {MAX_WAITING} may, and "
                f"of one key {MAX_TENANT_WAITING}", retry_after_s=wait_s,
            )  # fmt: skip
        self._tenants[tenant] = turns
        self._waiting += 1
        turns.waiting += 1
        try:
            async with turns.one_at_a_time, self._one_at_a_time:
                known = self._known(job, digest)  # by now
                if known is not None:
                    return known
                began = time.monotonic()
                answer = await self._ask(line)
                self._job_s += _RECENT * (time.monotonic() - began - self._job_s)
                if answer is None or answer["why"]:
                    self._bad[digest] = (time.monotonic() + BAD_S, answer)
                    if len(self._bad) > _MAX_BAD:
                        self._bad.popitem(last=False)
                else:
                    self._keep(digest, answer["grammar"])
        finally:
            self._waiting -= 1
            turns.waiting -= 1
            if not turns.waiting:
                del self._tenants[tenant]
        return self._grammar(job, answer)

    def _known(self, job: GrammarJob, digest: bytes) -> str | None:
        """What is remembered of a job; None if it is to be tried. Raises InvalidRequest: it was bad a moment ago."""
        known = self._good.get(digest)
        if known is not None:
            self._good.move_to_end(digest)
            return known
        until, answer = self._bad.get(digest, (0.0, None))
        return self._grammar(job, answer) if time.monotonic() < until else None

    def _grammar(self, job: GrammarJob, answer: dict[str, str] | None) -> str:
        if answer is None:
            raise InvalidRequest(
                field=job.field, value="", why=f"it takes more than {self._limit_s:g} s, or more memory than it may, "
                "to compile", code=job.code,
                remedy="a simpler one: fewer alternatives, shorter counts; the operator may raise "
                "server.limits.schema_seconds",
            )  # fmt: skip
        if answer["why"]:
            raise InvalidRequest(
                field=answer["field"] or job.field, value="", why=answer["why"],
                remedy="what docs/structured-output.md lists", code=job.code,
            )  # fmt: skip
        return answer["grammar"]

    def _keep(self, digest: bytes, text: str) -> None:
        if digest not in self._good:
            self._good[digest] = text
            self._good_bytes += len(text)
        while self._good_bytes > KEPT_BYTES:
            self._good_bytes -= len(self._good.popitem(last=False)[1])

    async def close(self) -> None:
        """End the process. Safe to call twice."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _ask(self, line: bytes) -> dict[str, str] | None:
        """The checker's answer; None if it had to be ended, or ended by itself. What a job may take ends it by other
        signals, so SIGKILL came from elsewhere: another process is asked, once."""
        self._was_killed = False
        answer = await self._ask_once(line)
        return await self._ask_once(line) if answer is None and self._was_killed else answer

    async def _ask_once(self, line: bytes) -> dict[str, str] | None:
        if self._process is None or self._process.returncode is not None:
            # Its own group: a Ctrl-C at the terminal is for the server, which drains first.
            self._process = await asyncio.create_subprocess_exec(
                *_COMMAND, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_MAX_LINE,
                start_new_session=True, stderr=asyncio.subprocess.DEVNULL,
                env=dict(os.environ) | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"},
            )  # fmt: skip
            hello = GrammarJob(field="", grammar="start: /a/").line(START_S)
            if await self._exchange(hello, START_S) is None:
                return None
        return await self._exchange(line, PATIENCE * self._limit_s)

    async def _exchange(self, line: bytes, limit_s: float) -> dict[str, str] | None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        answer, ended = b"", False
        try:
            async with patience(limit_s):
                process.stdin.write(line)
                await process.stdin.drain()
                answer = await process.stdout.readline()
            ended = process.stdout.at_eof()
        except ConnectionError:  # it was gone before the line was written
            ended = True
        except (TimeoutError, ValueError):  # a line too long to be one is a ValueError
            ended = False
        finally:
            # Also when whoever asked has gone: the answer to come must not be taken for the next one's.
            if not answer.endswith(b"\n"):
                if ended:
                    # What ended it is to be known before `close`: `kill` reaps, and the status is lost to asyncio.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_REAP_S):
                            await process.wait()
                await asyncio.shield(self.close())
        if not answer.endswith(b"\n"):
            self._was_killed = ended and process.returncode == -signal.SIGKILL
            return None
        found: dict[str, str] = json.loads(answer)
        return found
