"""How long prompts and outputs are: laws by name, or pairs drawn from a trace.

    512                         always 512
    uniform:64:900             every whole number from 64 to 900
    normal:1200  normal:1200:0.3    mean and relative deviation (0.3 is DeepSpeed-FastGen's)
    lognormal:6.6:0.98          mu and sigma of ln(tokens)
    azure-conv, azure-code, mooncake-conversation, mooncake-synthetic, servegen-m-large, servegen-m-mid,
    servegen-m-small, servegen-mm-image, servegen-deepseek-r1
                                measured traces: their inverse CDF, interpolated on a log axis

Inputs and outputs drawn apart lose what correlation there is (Azure conversation: the median output is 98, 108, 406
and 89 by input quartile); `Bootstrap` draws whole rows of a trace and keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BadInput
from penstock.units import parse_count
from penstock.workload.trace import Trace

Tokens = NDArray[np.int64]


class Lengths(Protocol):
    """A law of token counts."""

    def draw(self, count: int, generator: np.random.Generator) -> Tokens:
        """[count] lengths, each at least 1."""
        ...


def _whole(values: NDArray[np.float64]) -> Tokens:
    return np.maximum(1, np.rint(values)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same."""

    tokens: int

    def draw(self, count: int, generator: np.random.Generator) -> Tokens:
        del generator  # nothing is random here; the signature is the family's
        return np.full(count, self.tokens, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every whole number from `low` to `high`, both included."""

    low: int
    high: int

    def draw(self, count: int, generator: np.random.Generator) -> Tokens:
        return generator.integers(self.low, self.high, count, endpoint=True, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Normal:
    """Normal with standard deviation `relative` x mean, cut at 1 token."""

    mean: float
    relative: float = 0.3

    def draw(self, count: int, generator: np.random.Generator) -> Tokens:
        return _whole(generator.normal(self.mean, self.relative * self.mean, count))


@dataclass(frozen=True, slots=True)
class Lognormal:
    """exp(Normal(mu, sigma)). Misses the template lengths that real traces pile up at."""

    mu: float
    sigma: float

    def draw(self, count: int, generator: np.random.Generator) -> Tokens:
        return _whole(generator.lognormal(self.mu, self.sigma, count))


PERCENTILES: Final = (0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 0.999, 1.0)


@dataclass(frozen=True, slots=True)
class Empirical:
    """Inverse CDF through measured `tokens` at `PERCENTILES`, straight lines on a log axis; below 1 % it is flat."""

    tokens: tuple[int, ...]

    def draw(self, count: int, generator: np.random.Generator) -> Tokens:
        logs = np.interp(generator.uniform(0, 1, count), PERCENTILES, np.log(self.tokens))
        return _whole(np.exp(logs))


# Tokens at PERCENTILES, input and output. Azure LLM inference trace 2023 (Azure/AzurePublicDataset, CC-BY-4.0) and
# Mooncake FAST 2025 traces (kvcache-ai/Mooncake, Apache-2.0), computed over all rows; ServeGen pools (alibaba/ServeGen,
# Apache-2.0), each client weighted by its rate, clients without lengths left out.
MEASURED: Final[dict[str, tuple[Empirical, Empirical]]] = {
    "azure-conv": (
        Empirical((29, 181, 207, 396, 1020, 1189, 2734, 4083, 4142, 6179, 14050)),
        Empirical((16, 41, 54, 85, 129, 395, 424, 451, 601, 954, 1000)),
    ),
    "azure-code": (
        Empirical((17, 75, 147, 578, 1469, 2744, 5188, 7303, 7436, 7437, 7437)),
        Empirical((6, 6, 7, 9, 13, 24, 55, 90, 251, 825, 1899)),
    ),
    "mooncake-conversation": (
        Empirical((894, 901, 964, 2306, 6909, 15367, 27367, 39550, 85400, 121301, 126195)),
        Empirical((3, 10, 24, 156, 350, 472, 597, 698, 1119, 2000, 2000)),
    ),
    "mooncake-synthetic": (
        Empirical((16, 22, 30, 277, 11587, 23175, 38611, 48905, 66456, 191373, 191378)),
        Empirical((2, 2, 4, 11, 69, 250, 389, 519, 768, 813, 893)),
    ),
    "servegen-m-large": (
        Empirical((60, 64, 74, 262, 601, 1073, 2371, 2404, 5452, 12732, 30712)),
        Empirical((1, 1, 1, 8, 53, 208, 461, 539, 872, 1595, 9307)),
    ),
    "servegen-m-mid": (
        Empirical((30, 133, 135, 144, 173, 248, 645, 864, 2583, 5313, 23872)),
        Empirical((1, 4, 9, 16, 34, 61, 95, 131, 397, 948, 15968)),
    ),
    "servegen-m-small": (
        Empirical((18, 19, 19, 20, 40, 53, 322, 573, 1478, 2999, 145912)),
        Empirical((1, 1, 1, 2, 3, 10, 44, 71, 142, 269, 10912)),
    ),
    "servegen-mm-image": (  # text alone; the tokens of images come on top
        Empirical((36, 41, 41, 76, 106, 1032, 1914, 2346, 3064, 3395, 4242)),
        Empirical((2, 3, 6, 29, 100, 185, 264, 336, 587, 2000, 2000)),
    ),
    "servegen-deepseek-r1": (
        Empirical((9, 13, 18, 41, 208, 482, 2092, 6714, 23503, 34163, 57284)),
        Empirical((141, 225, 287, 427, 792, 1499, 3432, 5701, 12602, 20912, 32768)),
    ),
}


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Rows of a trace drawn with replacement: input and output stay together."""

    trace: Trace

    def draw_pairs(self, count: int, generator: np.random.Generator) -> tuple[Tokens, Tokens]:
        """([count] prompt tokens, [count] output tokens)."""
        return next(self.batches(count, generator))

    def batches(self, size: int, generator: np.random.Generator) -> Iterator[tuple[Tokens, Tokens]]:
        """`draw_pairs` of `size` rows at a time, without end."""
        prompts = np.array([request.prompt_tokens for request in self.trace.requests], dtype=np.int64)
        outputs = np.array([request.output_tokens for request in self.trace.requests], dtype=np.int64)
        while True:
            rows = generator.integers(0, len(self.trace), size)
            yield prompts[rows], outputs[rows]


def parse_lengths(text: str, *, field: str, output: bool) -> Lengths:
    """The law that `text` names; of a measured trace its output side when `output`.

    Raises:
        BadInput: `field` names the flag; unknown law, wrong number of parameters, or values that allow no token.
    """
    name, *parameters = text.strip().split(":")
    if name in MEASURED and not parameters:
        return MEASURED[name][output]
    try:
        law = _parametric(name, parameters)
    except ValueError as error:
        raise BadInput(
            field=field, value=text, why=str(error) or "no such law of lengths",
            remedy="512, uniform:64:900, normal:1200, lognormal:6.6:0.98, or one of " + ", ".join(MEASURED),
        ) from None  # fmt: skip
    return law


def _parametric(name: str, parameters: list[str]) -> Lengths:
    match name, parameters:
        case "uniform", [low, high]:
            bounds = parse_count(low), parse_count(high)
            _require(1 <= bounds[0] <= bounds[1], "the bounds must be 1 or more and in order")
            return Uniform(*bounds)
        case "normal", [mean, *rest] if len(rest) <= 1:
            deviation = float(rest[0]) if rest else 0.3
            _require(0 <= deviation < 10, "the relative deviation must lie in 0 to 10")
            return Normal(_at_least_one(parse_count(mean)), deviation)
        case "lognormal", [mu, sigma]:
            _require(0 <= float(mu) < 20 and 0 <= float(sigma) < 5, "mu must lie in 0 to 20, sigma in 0 to 5")
            return Lognormal(float(mu), float(sigma))
        case _, []:
            return Fixed(_at_least_one(parse_count(name)))
    raise ValueError("no such law of lengths, or a wrong number of parameters")


def _at_least_one(tokens: int) -> int:
    _require(tokens >= 1, "it must be at least 1 token")
    return tokens


def _require(holds: bool, why: str) -> None:
    if not holds:
        raise ValueError(why)
