"""Watts and joules of a device from how busy its parts are.

    P = idle + (peak - idle) x min(1, awake + compute U_c + memory U_m + link U_l)

U are utilisations, 0 to 1: work over (seconds x what the part can do). `awake` is what a device draws above idle as
soon as it runs anything: clocks up, kernels that spin on their peers. One law for prefill (U_c near 1: the limit) and
decode (U_m below 1: about two thirds of it), as Splitwise (ISCA 2024) and POLCA (ASPLOS 2024) measured the phases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from penstock.catalog.device import Device
from penstock.errors import InvalidDeployment
from penstock.twin.operators import Work
from penstock.twin.roofline import matrix_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerShares:
    """Shares of (peak - idle), as fractions: 0.4 and never 40 (GenZ's routine multiplies by 40, a hundredfold)."""

    awake: float
    compute: float
    memory: float
    link: float


MEASURED_SHARES: Final = PowerShares(awake=0.18, compute=0.82, memory=0.83, link=0.1)
"""awake and memory: a line through the average power of 70B and 176B decodes on 2, 4 and 8 A100 (splitwise-sim's
perf_model.csv, batch 1: 0.44 to 0.74 of the limit at 0.19 to 0.62 of the memory bandwidth). compute: prefills of 1,024
tokens and more reach the limit there. link: GenZ's."""

_NEUTRAL: Final = "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerModel:
    """Power of one device. Fits StepPrice's `power`."""

    idle_watts: float
    peak_watts: float
    flop_per_s: float
    """What U_c = 1 means: the dense peak of the type that products run in."""
    bytes_per_s: float
    link_bytes_per_s: float
    """0: no link; U_l is 0 then."""
    shares: PowerShares = MEASURED_SHARES

    @staticmethod
    def of(device: Device, *, dtype: str = _NEUTRAL, shares: PowerShares = MEASURED_SHARES) -> PowerModel:
        """From a device's file; `dtype` is that of the products.

        Raises InvalidDeployment: the file gives no idle_watts or no peak_watts.
        """
        for name in ("idle_watts", "peak_watts"):
            if getattr(device, name) is None:
                raise InvalidDeployment(
                    field=f"hardware.{name}", value=None, why=f"{device.name} has none, so there is no energy to count",
                    remedy=f"{name}: {{value: 60.0, basis: assumed, source: ...}} in the device's file",
                )  # fmt: skip
        assert device.idle_watts is not None
        assert device.peak_watts is not None
        link = device.scale_up or device.network
        return PowerModel(
            idle_watts=device.idle_watts.value, peak_watts=device.peak_watts.value,
            flop_per_s=matrix_rate(device, dtype, ideal=True), bytes_per_s=device.memory_bytes_per_s.value,
            link_bytes_per_s=link.bytes_per_s.value if link else 0.0, shares=shares,
        )  # fmt: skip

    @staticmethod
    def genz(watts: float = 1000.0, *, flop_per_s: float, bytes_per_s: float, link_bytes_per_s: float) -> PowerModel:
        """GenZ's split of a platform's power: 30 % static, 40 compute, 20 memory, 10 network (arXiv 2406.01698)."""
        dynamic = 0.7
        shares = PowerShares(awake=0.0, compute=0.4 / dynamic, memory=0.2 / dynamic, link=0.1 / dynamic)
        return PowerModel(
            idle_watts=0.3 * watts, peak_watts=watts, flop_per_s=flop_per_s, bytes_per_s=bytes_per_s,
            link_bytes_per_s=link_bytes_per_s, shares=shares,
        )  # fmt: skip

    def watts(self, compute_utilisation: float, memory_utilisation: float, link_utilisation: float = 0.0) -> float:
        """Power at these utilisations, each 0 to 1 (what is above 1 counts as 1). All zero: idle.

        >>> model = PowerModel(idle_watts=60, peak_watts=400, flop_per_s=1, bytes_per_s=1, link_bytes_per_s=1)
        >>> model.watts(0, 0), model.watts(1, 0.3), round(model.watts(0.02, 0.6), 1)
        (60, 400.0, 296.1)
        """
        if not (compute_utilisation or memory_utilisation or link_utilisation):
            return self.idle_watts
        shares = self.shares
        busy = shares.awake + shares.compute * min(1.0, compute_utilisation)
        busy += shares.memory * min(1.0, memory_utilisation) + shares.link * min(1.0, link_utilisation)
        return self.idle_watts + (self.peak_watts - self.idle_watts) * min(1.0, busy)

    def joules(self, seconds: float, work: Work) -> float:
        """Energy of `seconds` in which `work` is done, idle power included. Never falls as work grows."""
        if seconds <= 0.0:
            return 0.0
        link = work.link_bytes / (seconds * self.link_bytes_per_s) if self.link_bytes_per_s else 0.0
        compute, memory = work.flop / (seconds * self.flop_per_s), work.bytes / (seconds * self.bytes_per_s)
        return seconds * self.watts(compute, memory, link)
