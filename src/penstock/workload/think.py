"""What a person does between requests: how long they think, and how many turns a conversation has.

    think   5, 500ms, exponential:5s, lognormal:4.9:1 (mu and sigma of ln seconds), mooncake-conversation, coding-chat
    turns   3, geometric:2.7, mooncake-conversation, mooncake-synthetic

The measured pauses count from request to request, because the traces do not tell the answer's time from the pause; the
next request still never comes before the answer is complete.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from penstock.errors import BadInput
from penstock.units import parse_seconds

Draw = Callable[[np.random.Generator], float]


@dataclass(frozen=True, slots=True)
class Think:
    """A law of pauses in seconds."""

    draw: Draw
    from_arrival: bool = False
    """Counted from the arrival of the request before, not from its end."""

    def next_s(self, arrival_s: float, finished_s: float, generator: np.random.Generator) -> float:
        """When the next request comes: `finished_s` or later."""
        pause = self.draw(generator)
        return max(finished_s, arrival_s + pause) if self.from_arrival else finished_s + pause


NO_PAUSE: Final = Think(lambda generator: 0.0)

# Gap to the parent request in the Mooncake conversation trace (lognormal fit, 4,655 follow-ups in one hour), and
# between chat calls of the same participant and task in RealHumanEval (p10, p50, p90, p99 of 1,055 calls).
_MOONCAKE_GAP: Final = (4.878, 0.978)
_CODING_SHARES: Final = (0.1, 0.5, 0.9, 0.99)
_CODING_GAPS_S: Final = (24.0, 78.0, 216.0, 451.0)


def parse_think(text: str | float, *, field: str = "workload.think_s") -> Think:
    """The law that `text` names. Raises BadInput."""
    name, *parameters = str(text).strip().split(":")
    try:
        match name, parameters:
            case "mooncake-conversation", []:
                return Think(lambda generator: float(generator.lognormal(*_MOONCAKE_GAP)), from_arrival=True)
            case "coding-chat", []:
                return Think(_coding_gap, from_arrival=True)
            case "exponential", [mean]:
                mean_s = parse_seconds(mean)
                return Think(lambda generator: float(generator.exponential(mean_s)))
            case "lognormal", [mu, sigma]:
                law = float(mu), float(sigma)
                if not (abs(law[0]) < 20 and 0 <= law[1] < 5):
                    raise ValueError("mu must lie in -20 to 20, sigma in 0 to 5")
                return Think(lambda generator: float(generator.lognormal(*law)))
            case _, []:
                pause_s = parse_seconds(name)
                return Think(lambda generator: pause_s)
        raise ValueError("no such law of pauses, or a wrong number of parameters")
    except ValueError as error:
        raise BadInput(
            field=field, value=text, why=str(error),
            remedy="5s, exponential:5s, lognormal:4.9:1, mooncake-conversation or coding-chat",
        ) from None  # fmt: skip


def _coding_gap(generator: np.random.Generator) -> float:
    """Inverse CDF on a log axis; flat beyond the outermost known percentiles."""
    return float(np.exp(np.interp(generator.random(), _CODING_SHARES, np.log(_CODING_GAPS_S))))


# Sessions of the Mooncake traces: P(1, 2, 3, 4 turns), and the mean of the rest, which have 5 turns or more (so that
# all of them have the traces' mean, 1.63 and 1.81).
_MOONCAKE_TURNS: Final = {
    "mooncake-conversation": ((0.694, 0.178, 0.063, 0.027), 7.3),
    "mooncake-synthetic": ((0.815, 0.034, 0.030, 0.027), 7.8),
}


def parse_turns(text: str | int, *, field: str = "workload.turns") -> Callable[[np.random.Generator], int]:
    """Draws the number of turns of a session, 1 or more. Raises BadInput."""
    name, *parameters = str(text).strip().split(":")
    try:
        if name in _MOONCAKE_TURNS and not parameters:
            shares, rest = _MOONCAKE_TURNS[name]
            return lambda generator: _measured_turns(shares, rest, generator)
        if name == "geometric" and len(parameters) == 1:
            mean = float(parameters[0])
            if not 1 <= mean < 1e6:
                raise ValueError("the mean must be 1 or more")
            return lambda generator: int(generator.geometric(1 / mean))
        turns = int(name)
        if parameters or turns < 1:
            raise ValueError("it must be 1 or more")
        return lambda generator: turns
    except ValueError as error:
        raise BadInput(
            field=field, value=text, why=str(error), remedy="3, geometric:2.7, " + " or ".join(_MOONCAKE_TURNS)
        ) from None


def _measured_turns(shares: tuple[float, ...], rest_mean: float, generator: np.random.Generator) -> int:
    at = float(generator.random())
    for turns, share in enumerate(shares, start=1):
        if at < share:
            return turns
        at -= share
    least = len(shares) + 1
    return least - 1 + int(generator.geometric(1 / (rest_mean - least + 1)))
