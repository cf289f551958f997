"""What the front end may know about a replica and its requests: plain immutable data, safe to import anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from penstock.control.step import FinishReason, PromptLogprobs, TokenLogprobs

State = Literal["starting", "ready", "restarting", "draining", "stopped"]


@dataclass(frozen=True, slots=True)
class TimeBounds:
    """What a request asks of its time, in seconds from its submission; None: nothing.

    Clients count from the arrival: the server takes off what has passed since (serve/generation.py).
    """

    ttft_s: float | None = None
    """The first token is to come within this. Only looked at on submission."""
    tpot_s: float | None = None
    """A token is to take no longer than this. Only looked at on submission."""
    deadline_s: float | None = None
    """Without a token by then, it ends."""


OnPhase = Callable[[str, float, str], None]
"""Told the name, the seconds and the details of each phase of starting as it ends."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model as it was loaded, with the room it has."""

    name: str
    """What clients ask for."""
    path: str
    architecture: str
    parameters: int
    dtype: str
    vocab_size: int
    max_sequence_tokens: int
    """Longest prompt + output of one request: what the model and the KV pool both allow."""
    kv_capacity_tokens: int
    block_tokens: int
    blocks: int
    max_seqs: int
    fingerprint: str
    """'fp_...': changes with `checkpoint`, the precision, the kernels and the version of Penstock."""
    embedding_width: int = 0
    """Numbers in an embedding; 0: the model has none."""
    checkpoint: str = ""
    """12 hex digits: change with the weights, as far as samples of each tensor tell (runtime/fingerprint.py), and with
    the checkpoint's configuration, tokenizer and chat templates. "": nobody looked."""


@dataclass(slots=True)
class Timings:
    """Where one request's time went, as the front end saw it; a worker's restart counts to the phase it fell into."""

    queue_s: float
    """From submission to the start of the first step that computed it."""
    prefill_s: float
    """From there to the first token."""
    decode_s: float
    """From the first token to the last."""


@dataclass(frozen=True, slots=True)
class Output:
    """News of one request: usually one step's token; more where its reader was slower than the engine."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    """One for each of `tokens`, if the request asked for them."""
    finished: FinishReason | None = None
    """Set on the last one only, as is `stop_id`."""
    stop_id: int | None = None
    """The stop id that ended it; it is the last of the request's tokens."""
    cached_tokens: int = 0
    """Prompt tokens that were not computed. On every output: a reader may leave before the last."""
    timings: Timings | None = None
    """So far; the same object on each output of a request, brought up to date."""
    prompt_logprobs: PromptLogprobs | None = None
    """On the first output, if asked for: of all prompt tokens but the first."""
    embedding: tuple[float, ...] | None = None
    """On the first output, if asked for: `ModelInfo.embedding_width` numbers."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One engine step, for metrics. All counts are of this step alone."""

    number: int
    """Counts from 1 again when the worker was restarted."""
    started: float
    """Of the monotonic clock, which all processes of a machine share."""
    seconds: float
    tokens: int
    """Rows that went through the model: decodes and prefill."""
    decoding: int
    prefill_tokens: int
    new_tokens: int
    """Tokens that requests received."""
    preemptions: int
    """Sequences that lost their blocks or were swapped out."""
    host_seconds: float = 0.0
    """Of the worker's control since the step before: taking that one in and planning; it may overlap the engine."""
