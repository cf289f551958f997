"""What a simulated workload is made of, as plain values: the `workload` section of a deployment maps onto it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

Law = Literal["poisson", "gamma", "constant", "onoff", "drifting", "batch", "closed", "sessions"]
LAWS: Final[tuple[Law, ...]] = (
    "poisson", "gamma", "constant", "onoff", "drifting", "batch", "closed", "sessions"
)  # fmt: skip
DEFAULT_RATE: Final = 1.0
DEFAULT_CONCURRENCY: Final = 8
DEFAULT_REQUESTS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalSettings:
    """When requests come. What does not belong to the law is refused, so that no setting is without effect."""

    law: Law | None = None
    """poisson, gamma, constant; onoff and drifting (the Azure 2023 code and conversation traces); batch (all at 0);
    closed (`concurrency` users, each with one request at a time); sessions (conversations of several turns that begin
    by a Poisson law). None: a trace's own times, or poisson without a trace."""
    rate: float | None = None
    """Mean requests per second, of sessions per second. None: 1, or what a trace has; given, a trace is stretched."""
    cv: float | None = None
    """gamma: coefficient of variation of the gaps; 1 is Poisson, above is bursty."""
    concurrency: int | None = None
    """closed: users at once; None: 8."""
    think_s: str | float = 0.0
    """closed and sessions: pause before the next request; a law of `workload.think`."""
    turns: str | int | None = None
    """sessions: requests of one conversation; a law of `workload.think`; None: 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefixSettings:
    """Text that generated prompts begin with, so that a prefix cache has something to hit."""

    tokens: int = 0
    """Its length, in front of the prompt's own tokens; 0: none."""
    share: float = 1.0
    """Share of the requests that begin with it."""
    groups: int = 1
    """Number of different ones, each equally likely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSettings:
    """A workload. With a `trace`, lengths and prefixes are its own; without, laws draw them."""

    trace: Path | None = None
    """Azure, BurstGPT, Mooncake or LLMServingSim file, or a ServeGen pool (`...-trace.parquet`)."""
    trace_format: str = "auto"
    """auto, azure, burstgpt, mooncake, llmservingsim, vidur or servegen."""
    speed: float = 1.0
    """A trace's time runs so many times as fast."""
    begin_s: float = 0.0
    """ServeGen: where in its days the run begins."""
    dequantise: bool = False
    """Mooncake: requests that share a time stamp are spread over its tick of 3 s."""
    scale_to: int | None = None
    """A trace's lengths are scaled by one factor so that prompt + output fits this context."""
    arrivals: ArrivalSettings = field(default_factory=ArrivalSettings)
    prompt_tokens: str = "512"
    """Law of the prompt lengths (`workload.lengths`); of new words of a turn in sessions."""
    output_tokens: str = "128"
    """Law of the output lengths."""
    context_tokens: int | None = None
    """Generated requests are cut to fit this context; sessions end when the next turn would not."""
    requests: int | None = None
    """At most so many. None: all of a trace; 1,000 of a generated workload without a duration."""
    duration_s: float | None = None
    """Nothing arrives at this time or later."""
    shared_prefix: SharedPrefixSettings = field(default_factory=SharedPrefixSettings)
    tenants: Mapping[str, float] = field(default_factory=dict)
    """Tenant -> its share of the requests."""
    priorities: Mapping[int, float] = field(default_factory=dict)
    """Priority -> its share of the requests; lower goes first."""
    cancel_fraction: float = 0.0
    """Share of the requests whose user leaves in the middle of the answer."""
    seed: int = 0
