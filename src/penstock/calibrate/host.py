"""What a step costs beside its operators: Python, batch layout, control, hand-over between threads.

The real worker process serves a designed load and records its schedule; each step's time, as control saw it, less what
the table of operators says, is fitted by a fixed part, one per sequence, one more for the first few sequences, and one
per prompt token. The load is closed
loops of synthetic users, of few and of many, with short and with long prompts, so that the three parts can be told
apart; it has nothing of the workload that will be predicted. Each part is served several times and its fastest run
counts: whatever disturbs a machine makes it slower.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from penstock.calibrate.probe import DISTURBED, Probe
from penstock.control.request import Request, Sampling
from penstock.deployment import Deployment
from penstock.runtime.schedule import NANOSECONDS, Done, Plan, Schedule, read_schedule
from penstock.runtime.service import Service
from penstock.twin.load import StepLoad

USERS: Final = (1, 2, 4, 8, 16, 48)
LENGTHS: Final = ((24, 32), (160, 16), (480, 6))
"""(prompt, output) tokens; a context of less takes what fits."""
BENDS: Final = (2, 4, 8, 16)
"""Sequences after which each further one may cost less."""
STEPS_EACH: Final = 40
ROUNDS: Final = 30
ATTEMPTS: Final = 4
PATIENCE_S: Final = 1.5
"""How long each waits for a calm machine."""
MOST_S: Final = 0.6
"""A part that takes longer is cut off: short ones are more often undisturbed from start to end."""


Window = tuple[float, float]
"""From and to, on the monotonic clock."""
Steps = list[tuple[StepLoad, float]]
"""Steps with their seconds."""


@dataclass(frozen=True, slots=True)
class Host:
    """The fit, and how well it holds."""

    step_s: float
    request_s: float
    first_request_s: float
    first_requests: int
    token_s: float
    steps: int
    median_error: float
    """Median of |measured - predicted| / measured over the steps."""
    bias: float
    """(Sum of predicted - sum of measured) / sum of measured."""


def loads(schedule: Schedule, window: Window = (0.0, float("inf"))) -> Iterator[tuple[StepLoad, float]]:
    """Load and seconds of every step of a recording that followed another without a pause: from end to end.

    `window`: only steps that ended inside it.
    """
    plans: dict[int, Plan] = {}
    before, origin = 0, schedule.header.origin_ns
    first, last = window[0] * NANOSECONDS, window[1] * NANOSECONDS
    for event in schedule.events:
        if isinstance(event, Plan):
            plans[event.n] = event
        elif isinstance(event, Done):
            plan = plans.pop(event.n)
            if first <= event.end + origin <= last and plan.t < before and (plan.decoding or plan.chunks):
                yield load_of(plan), (event.end - before) / NANOSECONDS
            before = event.end


def load_of(plan: Plan) -> StepLoad:
    """What a planned step asks of the hardware."""
    return StepLoad(
        decoding=plan.decoding, decode_context=plan.decode_context,
        chunks=tuple((start, tokens) for _, start, tokens, _ in plan.chunks),
        sampled=plan.decoding + sum(last for *_, last in plan.chunks),
        swap_in_blocks=sum(len(device) for _, device, _ in plan.swap_in),
        swap_out_blocks=sum(len(device) for _, device, _ in plan.swap_out),
    )  # fmt: skip


def fit(steps: Sequence[tuple[StepLoad, float]], operators_s: Sequence[float]) -> Host:
    """Least absolute deviations of what is left when the operators are taken off, with the bend that leaves least.

    Not squares: now and then the machine does something else for as long as a step takes or ten times that, always on
    the same side, and squares would listen to those few steps.
    """
    measured, operators = np.array([seconds for _, seconds in steps]), np.array(operators_s)
    sequences = np.array([load.decoding + len(load.chunks) for load, _ in steps], float)
    prompt = np.array([sum(tokens for _, tokens in load.chunks) for load, _ in steps], float)
    # Between absolute error, which counts where steps queue up, and relative, which counts for each token.
    scale = measured**-0.5
    fits = []
    for bend in BENDS:
        features = np.stack([np.ones_like(prompt), sequences, np.minimum(sequences, bend), prompt], axis=1)
        found = _least_absolute(features * scale[:, None], (measured - operators) * scale)
        predicted = operators + features @ found
        fits.append((float((np.abs(predicted - measured) * scale).sum()), bend, found, predicted))
    _, bend, found, predicted = min(fits, key=lambda one: one[:2])
    step_s, request_s, first_s, token_s = (float(value) for value in found)
    return Host(
        step_s=step_s, request_s=request_s, first_request_s=first_s, first_requests=bend, token_s=token_s,
        steps=len(steps), median_error=float(np.median(np.abs(predicted - measured) / measured)),
        bias=float((predicted.sum() - measured.sum()) / measured.sum()),
    )  # fmt: skip


def _least_absolute(features: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least absolute deviations with no part below 0, by squares that are weighted anew."""
    weights = np.ones(len(target))
    found: NDArray[np.float64] = np.zeros(features.shape[1])
    for _ in range(ROUNDS):
        found = _not_negative(features * weights[:, None], target * weights)
        left = np.abs(target - features @ found)
        weights = np.maximum(left, 1e-3 * float(np.median(left)) + 1e-12) ** -0.5
    return found


def _not_negative(features: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares with no part below 0: the part that would be is left out, and the rest fitted again."""
    used = list(range(features.shape[1]))
    found = np.zeros(features.shape[1])
    while used:
        values = np.linalg.lstsq(features[:, used], target, rcond=None)[0]
        if (values >= 0).all():
            found[used] = values
            break
        used.remove(used[int(np.argmin(values))])
    return found


def fastest(attempts: Sequence[Steps], seconds_of: Callable[[StepLoad], float]) -> Steps:
    """Of one part's runs the one that took least for what its steps had to do."""

    def slowness(steps: Steps) -> float:
        return sum(seconds for _, seconds in steps) / sum(seconds_of(load) for load, _ in steps)

    return min((steps for steps in attempts if steps), key=slowness, default=[])


async def record(deployment: Deployment, out: Path, parts: list[list[Window]]) -> AsyncIterator[str]:
    """Serve the designed load; yields after each part of it. The recording is in `out` when this is done, and `parts`
    says when each part's attempts ran."""
    with_record = deployment.model_copy(
        update={"server": deployment.server.model_copy(update={"record": str(out)})}
    )  # fmt: skip
    service = await Service.start(with_record)
    try:
        info = service.info
        generator = np.random.default_rng(0)
        number = 0
        probe = Probe()

        def request(prompt_tokens: int, output_tokens: int) -> Request:
            nonlocal number
            number += 1
            prompt = tuple(generator.integers(0, info.vocab_size, prompt_tokens).tolist())
            return Request(
                id=f"host-{number}", prompt=prompt, max_tokens=output_tokens, sampling=Sampling(temperature=0.0)
            )  # fmt: skip

        async def user(prompt_tokens: int, output_tokens: int, requests: int) -> None:
            for _ in range(requests):
                # Uneven lengths keep users out of step with each other.
                output = max(2, int(output_tokens * generator.uniform(0.6, 1.4)))
                async for _ in service.generate(request(prompt_tokens, output)):
                    pass

        for prompt_tokens, output_tokens in LENGTHS:
            prompt_tokens = max(1, min(prompt_tokens, info.max_sequence_tokens - 2 * output_tokens))
            for users in USERS:
                if users > info.max_seqs:
                    continue
                each = max(2, -(-STEPS_EACH // output_tokens))
                parts.append([])
                for _ in range(ATTEMPTS):
                    patience = time.monotonic() + PATIENCE_S
                    while probe.slowness(21) > DISTURBED and time.monotonic() < patience:
                        await asyncio.sleep(0.05)
                    started = time.monotonic()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(MOST_S):
                            await asyncio.gather(*(user(prompt_tokens, output_tokens, each) for _ in range(users)))
                    parts[-1].append((started, time.monotonic()))
                yield f"{users} users of {prompt_tokens} + {output_tokens} tokens"
    finally:
        await service.close()


def recorded(deployment: Deployment) -> Iterator[str | list[list[Steps]]]:
    """The designed load in an event loop of its own: what was served after each part; at last, of each part, the steps
    of its attempts."""
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        out = Path(folder) / "host.jsonl"
        parts: list[list[Window]] = []
        serving = record(deployment, out, parts)
        while (part := runner.run(anext(serving, None))) is not None:
            yield part
        schedule = read_schedule(out)
        yield [[list(loads(schedule, window)) for window in attempts] for attempts in parts]
