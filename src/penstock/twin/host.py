"""Host time of a step: scheduling, input preparation, launch, sampling, output; what other simulators price at zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from penstock.catalog.device import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTime:
    """Seconds a step takes on the host beside the device's: fixed, per sequence, per prompt token.

    What goes by sequences may bend: each of the first few costs more than each further one, where what is done for all
    of them at once (one message, one wake-up of whoever reads it) comes with the first few. Linear where nobody
    measured a bend.
    """

    step_s: float = 0.0
    request_s: float = 0.0
    """For each sequence in the step."""
    first_request_s: float = 0.0
    """On top of `request_s` for each of the first `first_requests` sequences."""
    first_requests: int = 0
    token_s: float = 0.0
    """For each prompt token in the step."""
    overlapped: bool = False
    """The host prepares the next step while the device runs this one (vLLM's asynchronous scheduling, SGLang's overlap
    scheduler): only what is longer than the device's time shows."""
    basis: Literal["measured", "extrapolated", "assumed"] = "assumed"

    def words(self) -> str:
        """For people."""
        first = f" (the first {self.first_requests}: {(self.request_s + self.first_request_s) * 1e6:.3g})"
        return (
            f"{self.step_s * 1e3:.3g} ms a step, {self.request_s * 1e6:.3g} us a sequence"
            f"{first if self.first_requests else ''}, {self.token_s * 1e6:.3g} us a prompt token"
        )

    @staticmethod
    def of(device: Device, *, overlapped: bool = False) -> HostTime:
        """What the device's file says; zero where it says nothing."""
        host: Mapping[str, float] = {name: figure.value for name, figure in device.host.items()}
        measured = bool(device.host) and all(figure.basis == "measured" for figure in device.host.values())
        return HostTime(
            step_s=host.get("step_s", 0.0), request_s=host.get("request_s", 0.0), token_s=host.get("token_s", 0.0),
            first_request_s=host.get("first_request_s", 0.0), first_requests=round(host.get("first_requests", 0.0)),
            overlapped=overlapped, basis="measured" if measured else "assumed",
        )  # fmt: skip
