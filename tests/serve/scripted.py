"""A service without an engine: each test says what comes out and when. It keeps the interface of `runtime.Service`.

Tokens are bytes (id = byte), 256 is the end token. A script is an async generator function from a request to outputs.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager

import tokenizers
from fastapi import FastAPI

from penstock.control.request import Request
from penstock.control.statistics import Statistics
from penstock.control.step import PromptLogprobs, TokenLogprobs
from penstock.deployment import Deployment
from penstock.engine.token_settings import TokenSettings
from penstock.errors import PenstockError, Unavailable
from penstock.runtime import ChatTemplate, Tokenizer
from penstock.runtime.adapters import Adapters
from penstock.runtime.admission import NO_BOUNDS, Admission
from penstock.runtime.facts import ModelInfo, Output, State, StepReport, TimeBounds, Timings
from penstock.runtime.stream import AtOnce
from penstock.serve.app import create_app

EOS = 256
Script = Callable[[Request], AsyncIterator[Output]]

INFO = ModelInfo(
    name="scripted", path="/nowhere", architecture="none", parameters=0, dtype="float32", vocab_size=257,
    max_sequence_tokens=4096, kv_capacity_tokens=65536, block_tokens=16, blocks=4096, max_seqs=64,
    fingerprint="fp_scripted",
)  # fmt: skip


def byte_tokenizer(
    *, special: Sequence[str] = (), template: str | None = None, **sampling_defaults: float
) -> Tokenizer:
    """The real tokenizer, over a vocabulary of the 256 bytes, one end token and `special` ones (ids from 257 on).

    `template`: the chat template that its checkpoint is said to have.
    """
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    pieces = {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}
    assert sorted(pieces) == alphabet
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=pieces, merges=[]))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens(["<|end|>", *special])
    return Tokenizer(
        json.loads(library.to_str()),
        TokenSettings(
            eos_token="<|end|>",
            sampling_defaults=dict(sampling_defaults),
            templates={} if template is None else {"default": template},
        ),
    )


def plain_template(tokenizer: Tokenizer) -> ChatTemplate:
    """`role: content` lines."""
    return ChatTemplate(
        tokenizer,
        "{% for one in messages %}{{ one.role + ': ' + (one.content or one.tool_calls | tojson) + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    )


def say(text: str | bytes, *, tokens_per_output: int = 1, stop_id: int | None = EOS) -> Script:
    """Answer with `text`, then the end token, or "length" at max_tokens."""
    data = text.encode() if isinstance(text, str) else text

    async def script(request: Request) -> AsyncIterator[Output]:
        ids = list(data)[: request.max_tokens]
        stop = stop_id if len(ids) < request.max_tokens and stop_id in request.sampling.stop_ids else None
        if stop is not None:
            ids.append(stop)
        wanted, scored = request.sampling.logprobs, None
        if (top := request.sampling.prompt_logprobs) is not None:
            rest = list(request.prompt)[1:]
            likely = [tuple(((id + k) % 257, -0.25 - k) for k in range(1, top + 1)) for id in rest]
            scored = PromptLogprobs(1, [-0.25] * len(rest), [1] * len(rest), likely)
        for first in range(0, len(ids), tokens_per_output):
            await asyncio.sleep(0)
            some = tuple(ids[first : first + tokens_per_output])
            logprobs = None
            if wanted is not None:
                logprobs = tuple(
                    TokenLogprobs(-0.5, tuple(((id + k) % 257, -0.5 - k) for k in range(wanted))) for id in some
                )
            last = first + tokens_per_output >= len(ids)
            yield Output(
                some, logprobs, finished=("stop" if stop is not None else "length") if last else None,
                stop_id=stop if last else None, cached_tokens=min(3, len(request.prompt)),
                timings=Timings(0.001, 0.002, 0.003), prompt_logprobs=None if first else scored,
            )  # fmt: skip

    return script


def raising(error: Exception, after: bytes = b"") -> Script:
    """Fail, after some tokens."""

    async def script(request: Request) -> AsyncIterator[Output]:
        for id in after:
            yield Output((id,))
        raise error

    return script


def _plain(output: Output) -> bool:
    """One token in the middle, and nothing with it: what the service offers to `at_once`."""
    with_it = (output.logprobs, output.finished, output.prompt_logprobs, output.embedding)
    return len(output.tokens) == 1 and with_it == (None,) * 4


class ScriptedService:
    """`script` answers every request. `calls` are the requests seen; `ended` those whose iterator was closed early."""

    def __init__(self, deployment: Deployment, info: ModelInfo = INFO) -> None:
        self.deployment, self.info = deployment, info
        self.state: State = "ready"
        self.restarts = self.recovered = 0
        self.recovery_s: float | None = None
        self.stalled_s = 0.0
        self.failure: PenstockError | None = None
        self.statistics = Statistics(total_blocks=10, held_blocks=4, free_blocks=5, cached_blocks=1)
        queue = deployment.server.queue
        self.admission = Admission(max_requests=queue.max_requests, max_prompt_tokens=queue.max_prompt_tokens)
        self.on_step: list[Callable[[StepReport], None]] = []
        self.adapters = Adapters(deployment.model, lambda message: None, self._unused)
        self.script: Script = say("hello")
        self.calls: list[Request] = []
        self.cancelled: list[str] = []
        self.bounds = NO_BOUNDS
        self.resets = self.in_flight = 0
        self.worker_pid: int | None = None
        self.recovery_s: float | None = None
        self.running = 0
        self.someone_left = threading.Event()
        self.all_left = threading.Event()
        self.someone_runs = threading.Event()

    async def generate(
        self, request: Request, bounds: TimeBounds = NO_BOUNDS, at_once: AtOnce | None = None
    ) -> AsyncIterator[Output]:
        self.calls.append(request)
        self.bounds = bounds
        self.running += 1
        self.all_left.clear()
        finished = False
        try:
            async for output in self.script(request):
                self.someone_runs.set()
                finished = output.finished is not None
                if at_once is None or not _plain(output) or not at_once(output.tokens[0], time.monotonic()):
                    yield output
        finally:
            self.running -= 1
            if not finished:
                self.cancelled.append(request.id)
                self.someone_left.set()
            if not self.running:
                self.all_left.set()

    @contextmanager
    def reserve(
        self, requests: Sequence[Request], *, field: str = "prompt", bounds: TimeBounds = NO_BOUNDS
    ) -> Iterator[None]:
        """Bounded as the real one; given back at the end, not at each first token."""
        self.admission.admit_group({one.id: len(one.prompt) for one in requests}, 0.0, field=field)
        try:
            yield
        finally:
            for one in requests:
                self.admission.gone(one.id, 0.0)

    async def _unused(self, handle: str) -> None:
        """No scripted request outlasts its test."""

    def adapters_in_use(self) -> tuple[set[str], set[str]]:
        return set(), set()

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    @property
    def retry_after_s(self) -> float:
        return self.admission.retry_after_s(0.0)

    def unavailable(self) -> Unavailable:
        return Unavailable(f"the service is {self.state}", retry_after_s=self.retry_after_s)

    def step(self, number: int, tokens: int) -> None:
        """Report a step to whoever listens."""
        for callback in self.on_step:
            callback(StepReport(number, 0.0, 0.004, tokens, tokens, 0, tokens, 0))


def scripted_app(service: ScriptedService, tokenizer: Tokenizer | None = None) -> FastAPI:
    """The app over a scripted service, with byte tokens and a plain template."""
    tokenizer = tokenizer or byte_tokenizer()
    return create_app(
        service,  # type: ignore[arg-type]
        service.deployment, tokenizer=tokenizer, template=plain_template(tokenizer),
    )  # fmt: skip
