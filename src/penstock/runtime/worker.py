"""The engine's own process: `python -m penstock.runtime.worker --fd N`, N being a socket to the front end.

Threads, each blocked unless it has work, so that an idle worker takes no CPU:

    main      builds the engine and runs its steps (one thread for all of torch: its thread pool belongs to the caller)
    reader    blocks on the socket and puts messages into one queue of events
    prepare   compiles the grammars of requests that have one, before the loop sees them
    control   owns the Loop: takes events from that queue, plans, commits, sends. It is a thread of its own where steps
              run on a device, and Python is free meanwhile. Where they take all cores, two threads would only hand the
              interpreter back and forth (of a step of 64 sequences and 10 ms, control takes 0.2): the main thread does
              both, and the news of a step leaves while the next one is prepared, when a core is free for who reads it.

A step that raises ends the process: the engine's state is unknown then, and a fresh one that recomputes is certain.
Requests that the engine can tell apart fail alone, in the step's result. When the front end is gone, so is the worker.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from penstock.control.request import Request
from penstock.control.step import Failed, Finished, NewTokens, Step, StepResult, TokenLogprobs, Update
from penstock.deployment import Deployment
from penstock.errors import BadInput, InvalidRequest, ProtocolError
from penstock.observe.logs import configure
from penstock.runtime import wire
from penstock.runtime.ahead import launches_early, results
from penstock.runtime.build import Built, OnPhase, build
from penstock.runtime.facts import StepReport
from penstock.runtime.failures import describe
from penstock.runtime.forkserver import serve_forks
from penstock.runtime.local import Loop, Turn
from penstock.runtime.parent import die_with_parent
from penstock.runtime.reading import OnRead
from penstock.runtime.record import Recorder, free_name, recorder_for
from penstock.runtime.worker_adapters import Read, WorkerAdapters

LOG_LINE: Final = "%(levelname)s %(name)s: %(message)s"
STATISTICS_EVERY_S: Final = 0.25
_READ_BYTES: Final = 256 * 2**10

Builder = Callable[[Deployment, OnPhase, OnRead], Built]

_log = logging.getLogger("penstock.runtime")


@dataclass(frozen=True, slots=True)
class Ran:
    """The main thread's news: a step's result, and when it ran on the monotonic clock."""

    result: StepResult
    started: float
    ended: float


@dataclass(frozen=True, slots=True)
class Prepared:
    """The preparing thread's news: the request can be submitted, or has an error."""

    request: Request
    error: InvalidRequest | None


Event = wire.ToWorker | Ran | Prepared | Read


class Worker:
    """The control's state: one Loop between a socket and the thread that runs steps."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.steps: queue.SimpleQueue[Step] = queue.SimpleQueue()
        self.preparing: queue.SimpleQueue[Request] = queue.SimpleQueue()
        """Requests whose grammar is to be compiled: that may take as long as many steps, which go on meanwhile."""
        self.recorder: Recorder | None = None
        self.adapters = WorkerAdapters(None, self.send, self.events.put)
        self._prepares = False
        self._in_preparation: set[str] = set()
        self._cancelled: set[str] = set()
        self._statistics_due = 0.0
        self._host_s = 0.0
        """Spent in the loop since the last report of a step."""

    def send(self, message: wire.FromWorker) -> None:
        """Blocks while the front end does not read: better than collecting without bound."""
        self._link.sendall(wire.encode(message))

    def read(self) -> None:
        """Reader thread: messages into the queue; never returns, since the end of the stream ends the process."""
        frames = wire.Frames(wire.to_worker)
        try:
            while data := self._link.recv(_READ_BYTES):
                for message in frames.feed(data):
                    self.events.put(message)
        except (OSError, ProtocolError) as error:
            print(f"penstock worker: lost the front end: {error}", file=sys.stderr, flush=True)
        self.close()
        os._exit(0)

    def close(self) -> None:
        """What was recorded is in its file."""
        if self.recorder is not None:
            self.recorder.close()

    def control(self, built: Built) -> None:
        """Control thread: handle everything that has arrived, then let the loop go on."""
        loop = self._loop(built)
        while True:
            self._handle(loop, self.events.get())
            self._handle_arrived(loop)
            self._advance(loop)

    def control_and_run(self, built: Built) -> None:
        """Main thread: that, and the steps. What comes while one runs is seen before the next one is planned."""
        loop = self._loop(built)
        while True:
            if not loop.busy:
                self._handle(loop, self.events.get())
            self._handle_arrived(loop)
            self._advance(loop)
            if loop.busy:
                step = self.steps.get_nowait()
                started = time.monotonic()
                ran = Ran(built.executor.run(step), started, time.monotonic())
                self._handle_arrived(loop)
                self._handle(loop, ran)

    def _loop(self, built: Built) -> Loop:
        self._prepares = built.prepare is not None
        return Loop(
            built.replica, built.executor, clock=time.monotonic, plan_ahead=built.plan_ahead, launch=self._launch,
            observer=self.recorder, recompute_beyond=built.recompute_beyond,
        )  # fmt: skip

    def _handle_arrived(self, loop: Loop) -> None:
        while True:
            try:
                event = self.events.get_nowait()
            except queue.Empty:
                return
            self._handle(loop, event)

    def _advance(self, loop: Loop) -> None:
        began = time.monotonic()
        loop.advance()
        self._host_s += time.monotonic() - began
        if not loop.busy and (updates := loop.take_updates()):
            self._report(loop, None, updates)

    def _launch(self, step: Step) -> None:
        if step.admit:
            self.send(wire.Admitted([one.id for one in step.admit]))
        self.steps.put(step)

    def _handle(self, loop: Loop, event: Event) -> None:
        match event:
            case Ran(result, started, ended):
                began = time.monotonic()
                turn = loop.done(result, started, ended)
                self._host_s += time.monotonic() - began
                self._report(loop, turn, turn.updates)
                self.adapters.stepped()
            case wire.Submit(request):
                if request.sampling.guide is not None and self._prepares:
                    self._in_preparation.add(request.id)
                    self.preparing.put(request)
                else:
                    self._submit(loop, request)
            case Prepared(request, error):
                self._in_preparation.discard(request.id)
                if error is not None:
                    self._refuse(request.id, error)
                else:
                    self._submit(loop, request)
                if request.id in self._cancelled:
                    self._cancelled.discard(request.id)
                    loop.cancel(request.id)
            case wire.Cancel(id):
                if id in self._in_preparation:
                    self._cancelled.add(id)
                else:
                    loop.cancel(id)
            case wire.LoadAdapter():
                self.adapters.load(event)
            case Read():
                self.adapters.take(event)
            case wire.UnloadAdapter(name):
                self.adapters.unload(name)
            case wire.ForgetPrefixes():
                loop.replica.forget_prefixes()
            case wire.Start():
                raise ProtocolError("a worker is started once")

    def _submit(self, loop: Loop, request: Request) -> None:
        try:
            loop.submit(request)
        except InvalidRequest as error:
            self._refuse(request.id, error)

    def _refuse(self, id: str, error: InvalidRequest) -> None:
        value = repr(error.value)[:200]
        self.send(wire.Refused(id, error.field, value, error.why, error.remedy, error.code))

    def prepare(self, prepare: Callable[[Request], None]) -> None:
        """Preparing thread: compile what requests need, one after the other."""
        while True:
            request = self.preparing.get()
            error = None
            try:
                prepare(request)
            except InvalidRequest as one:
                error = one
            self.events.put(Prepared(request, error))

    def _report(self, loop: Loop, turn: Turn | None, updates: Sequence[Update]) -> None:
        tokens: dict[str, int] = {}
        logprobs: dict[str, TokenLogprobs] = {}
        finished: list[Finished] = []
        failed: list[Failed] = []
        for update in updates:
            match update:
                case NewTokens():
                    tokens.update(update.tokens)
                    logprobs.update(update.logprobs)
                case Finished():
                    finished.append(update)
                case Failed():
                    failed.append(update)
        statistics = None
        if not loop.replica.live or not loop.busy or time.monotonic() >= self._statistics_due:
            statistics = loop.replica.statistics()
            self._statistics_due = time.monotonic() + STATISTICS_EVERY_S
        self.send(
            wire.Stepped(
                report=_step_report(turn, len(tokens), self._host_s) if turn is not None else None,
                admitted={one.id: one.cached_tokens for one in turn.step.admit} if turn is not None else {},
                tokens=tokens, logprobs=logprobs, finished=finished, failed=failed, statistics=statistics,
                prompt_logprobs=turn.result.prompt_logprobs if turn is not None else None,
                embeddings=turn.result.embeddings if turn is not None else None,
            )
        )  # fmt: skip
        if turn is not None:
            self._host_s = 0.0


def _step_report(turn: Turn, new_tokens: int, host_s: float) -> StepReport:
    step = turn.step
    return StepReport(
        number=step.number, started=turn.started, seconds=turn.ended - turn.started, tokens=step.tokens,
        decoding=step.decoding, prefill_tokens=step.tokens - step.decoding, new_tokens=new_tokens,
        preemptions=len(step.evict) + len(step.swap_out), host_seconds=host_s,
    )  # fmt: skip


def serve(link: socket.socket, builder: Builder) -> None:
    """Build, say ready, and run steps until the process ends. Raises what building or a step raised."""
    worker = Worker(link)
    threading.Thread(target=worker.read, name="reader", daemon=True).start()
    start = worker.events.get()
    if not isinstance(start, wire.Start):
        raise ProtocolError(f"the first message must be Start, not {type(start).__name__}")
    deployment = Deployment.parse(start.deployment)
    configure(deployment.server.log_format, text=LOG_LINE)
    built = builder(
        deployment,
        lambda name, seconds, detail: worker.send(wire.Phase(name, time.monotonic(), detail)),
        lambda done, total: worker.send(wire.Reading(done, total)),
    )
    if deployment.server.record is not None:
        worker.recorder = _recorder(deployment, built, start.restart)
    worker.adapters = WorkerAdapters(built.adapters, worker.send, worker.events.put)
    worker.adapters.start(start.adapters, restart=start.restart)
    worker.send(wire.Ready(built.info))
    worker.send(wire.Stepped(statistics=built.replica.statistics()))
    if (prepare := built.prepare) is not None:
        threading.Thread(
            target=_or_die, args=(worker, lambda: worker.prepare(prepare)), name="prepare", daemon=True
        ).start()
    try:
        if not launches_early(built.executor):
            worker.control_and_run(built)
        threading.Thread(
            target=_or_die, args=(worker, lambda: worker.control(built)), name="control", daemon=True
        ).start()
        for result, started, ended in results(built.executor, worker.steps, time.monotonic):
            worker.events.put(Ran(result, started, ended))
    finally:
        worker.close()


def _recorder(deployment: Deployment, built: Built, restart: bool) -> Recorder | None:
    """Of this worker's schedule; the one that takes its place will write a file of its own, or none if it cannot."""
    path = free_name(Path(str(deployment.server.record)))
    try:
        return recorder_for(
            path, deployment, blocks=built.info.blocks, max_sequence_tokens=built.info.max_sequence_tokens,
            host_blocks=built.host_blocks, now=time.monotonic(), model=built.info.fingerprint,
        )  # fmt: skip
    except BadInput as error:
        if not restart:
            raise
        _log.error("this worker records nothing: %s", error)
        return None


def _or_die(worker: Worker, body: Callable[[], None]) -> None:
    """A thread that the process cannot go on without."""
    try:
        body()
    except BaseException as error:  # noqa: BLE001 - last words, then the process ends
        worker.close()
        _last_words(worker.send, error)


def _last_words(send: Callable[[wire.FromWorker], None], error: BaseException) -> None:
    failure = describe(error)
    if failure.kind not in ("BadInput", "InvalidDeployment", "UnsupportedAdapter", "UnsupportedModel"):
        traceback.print_exception(error)
        sys.stderr.flush()
    try:
        send(failure)
    finally:
        os._exit(1)


def main(arguments: Sequence[str] | None = None, builder: Builder = build) -> None:
    """Entry point; `builder` makes replica and executor."""
    parser = argparse.ArgumentParser(prog="penstock.runtime.worker", description="Started by the front end.")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--fd", type=int, help="inherited socket to the front end")
    how.add_argument("--fork-server", type=int, help="inherited socket on which forks are asked for")
    given = parser.parse_args(arguments)
    die_with_parent()  # Elsewhere than on Linux, end of file on the socket does it.
    if given.fd is not None:
        work(given.fd, builder)
    else:
        _ignore_signals()
        serve_forks(socket.socket(fileno=given.fork_server), lambda fd: work(fd, builder))


def work(fd: int, builder: Builder = build) -> None:
    """Be a worker until the process ends, which is this call's end."""
    link = socket.socket(fileno=fd)
    link.set_inheritable(False)
    die_with_parent()
    _ignore_signals()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    configure("text", text=LOG_LINE)
    try:
        serve(link, builder)
    except BaseException as error:  # noqa: BLE001 - last words, then the process ends
        _last_words(lambda message: link.sendall(wire.encode(message)), error)


def _ignore_signals() -> None:
    """Signals for the group are the front end's to handle: a terminal, or a manager of services, sends them to all."""
    for number in (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if sys.platform != "win32" else [])):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
