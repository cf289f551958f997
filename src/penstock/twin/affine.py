"""The two-parameter price of a whole request: T(p, o) = alpha(p) + beta (o - 1).

Narayanan et al., "Cheaply Evaluating Inference Efficiency Metrics for Autoregressive Transformer APIs" (NeurIPS 2023,
arXiv 2305.02440). alpha(p) is a table of measured times of a prompt of p tokens and one output token; beta is the time
of each later token, one number for a model on a stack. Batch 1 only: it says nothing of queues or throughput. Two uses:
the *idealized runtime* of any model or endpoint, a metric that two vendors' hardware does not blur; and the cheapest
price of a step there is (`AffineSteps`). Seconds, tokens.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from penstock.errors import BadInput
from penstock.twin.load import StepLoad
from penstock.twin.twin import Pricing

Rule = Literal["linear", "saw_tooth"]
"""linear: straight lines through the running maximum of the table, so that it never falls. saw_tooth: the paper's rule,
the next key's time scaled by p / key; it is low by up to (key - p) / key and jumps back up behind each key."""
PROMPT_GRID = (
    1, 16, 32, 64, 128, 192, 256, 320, 384, 428, 472, 512, 576, 640, 704, 768, 832, 896, 960, 1024, 1152, 1280, 1408,
    1536, 1664, 1792, 1920,
)  # fmt: skip
"""Prompt lengths of the paper's profiles on A100."""
OUTPUT_GRID = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One request that ran alone. `asked_tokens` None: it gave what was asked for."""

    prompt_tokens: int
    output_tokens: int
    seconds: float
    asked_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Affine:
    """The pair. `prompt_s` is sorted by prompt length; lengths are positive and differ."""

    prompt_s: tuple[tuple[int, float], ...]
    token_s: float

    def __post_init__(self) -> None:
        lengths = [length for length, _ in self.prompt_s]
        if not lengths or lengths[0] < 1 or any(b <= a for a, b in pairwise(lengths)):
            raise BadInput(
                field="runtime_for_prompt_tokens", value=lengths, why="prompt lengths must rise from 1 or more",
                remedy="one time for each prompt length, sorted",
            )  # fmt: skip

    def seconds(self, prompt: float, output: float, rule: Rule = "linear") -> float:
        """T(p, o); without output tokens alpha(p).

        >>> Affine(((1, 0.1), (100, 0.3)), 0.02).seconds(100, 11)
        0.5
        """
        return self.prompt_seconds(prompt, rule) + self.token_s * max(0, output - 1)

    def prompt_seconds(self, prompt: float, rule: Rule = "linear") -> float:
        """alpha(p), also between and beyond the table's keys; 0 for an empty prompt."""
        if prompt <= 0:
            return 0.0
        lengths = [length for length, _ in self.prompt_s]
        at = bisect.bisect_left(lengths, prompt)
        if at < len(lengths) and lengths[at] == prompt and rule == "saw_tooth":
            return self.prompt_s[at][1]
        if rule == "saw_tooth":
            length, seconds = self.prompt_s[min(at, len(lengths) - 1)]
            return seconds * prompt / length
        risen = self._risen()
        if at == 0:
            return risen[0]
        if at == len(lengths):
            if at == 1:
                return risen[0]
            at -= 1  # beyond the table: its last line goes on
        (low, high), (below, above) = (lengths[at - 1], lengths[at]), (risen[at - 1], risen[at])
        if prompt == high:
            return above
        return below + (above - below) * (prompt - low) / (high - low)

    def _risen(self) -> list[float]:
        best, risen = 0.0, []
        for _, seconds in self.prompt_s:
            best = max(best, seconds)
            risen.append(best)
        return risen

    def as_json(self) -> dict[str, Any]:
        """The form of the paper's published files."""
        return {
            "runtime_per_output_token": self.token_s,
            "runtime_for_prompt_tokens": {str(length): seconds for length, seconds in self.prompt_s},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Affine:
        table = sorted((int(length), float(s)) for length, s in data["runtime_for_prompt_tokens"].items())
        return cls(tuple(table), float(data["runtime_per_output_token"]))


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted pair and how well it holds."""

    affine: Affine
    r_squared: float
    """Of the pooled line through (o - 1, T - alpha(p)), its intercept included."""
    mean_square_error: float
    """Of T against alpha(p) + beta (o - 1); the fitted intercept is dropped, as the paper does. Seconds squared."""


def denoise(trials: Iterable[Measurement]) -> list[Measurement]:
    """The least of repeated trials at each (p, o), for endpoints whose load and queues blur the rest. Trials that gave
    another number of tokens than asked for are left out."""
    best: dict[tuple[int, int], float] = {}
    for trial in trials:
        if trial.asked_tokens is not None and trial.asked_tokens != trial.output_tokens:
            continue
        key = trial.prompt_tokens, trial.output_tokens
        best[key] = min(best.get(key, float("inf")), trial.seconds)
    return [Measurement(*key, seconds) for key, seconds in sorted(best.items())]


def fit(
    measured: Iterable[Measurement], *, prompt_from: Literal["first_token", "line"] = "first_token",
    digits: int | None = 3,
) -> Fit:  # fmt: skip
    """alpha by table, beta by one least-squares slope over all (o - 1, T - alpha(p)).

    Args:
        measured: one time for each (p, o).
        prompt_from: first_token: alpha(p) is the time with o = 1. line: where that is too noisy, the line through the
            times of p, at o = 1, and not below alpha of the shortest prompt.
        digits: decimals kept, as the paper does; None: all.
    Raises:
        BadInput: a prompt length has no time with o = 1, or nothing has o > 1.
    """
    rows: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for one in measured:
        rows[one.prompt_tokens].append((one.output_tokens, one.seconds))

    def rounded(value: float) -> float:
        return value if digits is None else round(value, digits)

    table: dict[int, float] = {}
    for prompt in sorted(rows):
        times = sorted(rows[prompt])
        if prompt_from == "line" and len({output for output, _ in times}) > 1:
            slope, intercept, _ = _line(times)
            seconds = slope + intercept
            table[prompt] = rounded(max(seconds, next(iter(table.values()), seconds)))
        elif times[0][0] == 1:
            table[prompt] = rounded(times[0][1])
        else:
            raise BadInput(
                field="output_tokens", value=times[0][0], why=f"prompts of {prompt} have no time with one output token",
                remedy="measure output_tokens = 1, which alpha is; or prompt_from='line' and two lengths",
            )  # fmt: skip
    pooled = [(output - 1, seconds - table[prompt]) for prompt in table for output, seconds in rows[prompt]]
    if len({steps for steps, _ in pooled}) < 2:
        raise BadInput(
            field="output_tokens", value=[1], why="the time of a later token cannot be told from first tokens",
            remedy="measure some requests with more than one output token",
        )  # fmt: skip
    slope, _, r_squared = _line(pooled)
    affine = Affine(tuple(table.items()), rounded(slope))
    errors = [(seconds - affine.token_s * steps) ** 2 for steps, seconds in pooled]
    return Fit(affine, r_squared, sum(errors) / len(errors))


def profile(
    run: Callable[[int, int], float], *, prompts: Sequence[int] = PROMPT_GRID, outputs: Sequence[int] = OUTPUT_GRID,
    trials: int = 1,
) -> Iterable[Measurement]:  # fmt: skip
    """Measurements of anything that can be timed: `run(prompt tokens, output tokens)` gives seconds. Lazily, one by
    one, so that the caller can show progress or stop; `fit(denoise(profile(run)))` is the idealized runtime."""
    for _ in range(trials):
        for prompt in prompts:
            for output in outputs:
                yield Measurement(prompt, output, run(prompt, output))


def dollars(seconds: float, devices: int, price_per_hour: float) -> float:
    """Idealized cost of a request that takes `seconds` on `devices` devices.

    >>> dollars(3600.0, 8, 4.096)
    32.768
    """
    return seconds * devices * price_per_hour / 3600.0


def flop(hidden: int, layers: int, prompt: int, output: int) -> float:
    """The paper's FLOP of a request: 24 h^2 L (p + o - 1): layers of 12 h^2 parameters, attention left out."""
    return 24.0 * hidden**2 * layers * (prompt + output - 1)


class AffineSteps(Pricing):
    """Prices steps of the twin with the pair. A lone request takes exactly T(p, o).

    A chunk costs the rise of alpha over it; a step with a decode set costs beta, whatever its size: weights are read
    once. The pair knows no more of batches than that.
    """

    def __init__(self, affine: Affine) -> None:
        self.affine = affine

    def seconds(self, load: StepLoad) -> float:
        """Seconds of a step with this load."""
        total = self.affine.token_s if load.decoding else 0.0
        for past, tokens in load.chunks:
            total += self.affine.prompt_seconds(past + tokens) - self.affine.prompt_seconds(past)
        return total

    def decode_ends(
        self, decoding: int, context: int, squares: int, now: float, most: int, until: float
    ) -> list[float]:
        """Ends of consecutive decode-only steps; no step begins at or after `until`."""
        ends: list[float] = []
        for _ in range(most):
            now += self.affine.token_s
            ends.append(now)
            if now >= until:
                break
        return ends


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Least squares: slope, intercept, R^2."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    xx = sum((x - mean_x) ** 2 for x, _ in points)
    xy = sum((x - mean_x) * (y - mean_y) for x, y in points)
    yy = sum((y - mean_y) ** 2 for _, y in points)
    slope = xy / xx
    return slope, mean_y - slope * mean_x, (xy * xy / (xx * yy) if yy else 1.0)
