"""Hopper dissection (IPDPS 2024, arXiv 2402.13499): matrix instructions, memory levels, what follows.

The measurements are data; ours are the predictions made from them: instruction rates from cycles, times of a large GEMM
by the price of an operator, and whether decode can gain from narrower types.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

from penstock.catalog.shape import Attention, FeedForward, LayerGroup, ModelShape
from penstock.reproduce.data import read_yaml
from penstock.reproduce.registry import Reproduction, Sheet
from penstock.twin.genz import Genz, Platform
from penstock.twin.operators import Gemm
from penstock.twin.peak import Limits, Peak

LLAMA_3B: Final = ModelShape(
    name="llama-3b", hidden=3200, vocab=32_000,
    groups=(
        LayerGroup(
            count=26, attention=Attention(heads=32, kv_heads=32, head_dim=100),
            feed_forward=FeedForward(intermediate=8640),
        ),
    ),
    source="config.json of openlm-research/open_llama_3b; assumed to be the paper's llama-3B",
)  # fmt: skip


def run() -> Reproduction:
    sheet = Sheet()
    data: dict[str, Any] = read_yaml("hopper_dissect.yaml")
    names, rates = data["devices"], data["flop_per_s"]
    for index, name in enumerate(names):
        levels = [data["latency_cycles"][level][index] for level in ("shared", "l1", "l2", "memory")]
        rising = all(near < far for near, far in pairwise(levels))
        sheet.equal(f"{name}: latency rises with each level", 1, float(rising), "", f"{levels} cycles")
        share = rates["mma_fp16"][index] / data["peak_fp16_flop_per_s"][index]
        sheet.info(f"{name}: mma FP16 of the datasheet's peak", 100 * share, "%", "measured / datasheet")
    _instructions(sheet, data)
    for index, name in enumerate(names):
        best = rates["wgmma_fp16"][index] or rates["mma_fp16"][index]
        paper_ms = 1e3 * 2 * 8192**3 / best
        sheet.within(f"{name}: 8192^3 in FP16", paper_ms, 1e3 * _gemm_s(best), "ms", 0.02,
                     "priced at the measured rate; the paper's: FLOP / measured rate")  # fmt: skip
    _decode(sheet, data)
    sheet.note("The RTX 4090's FP16 rates lie above its datasheet: they accumulate in FP16 or boost beyond it.")
    sheet.note("Zero-filled inputs: random ones pull the H800 to its 350 W and below the reference clock.")
    sheet.note("H800 PCIe is not H100 SXM: fewer SMs, lower clock, 350 W. No figure here stands for the other.")
    return sheet.close("hopper-dissect")


def _instructions(sheet: Sheet, data: dict[str, Any]) -> None:
    part, rates = data["h800"], data["flop_per_s"]
    issue = 2 * 64 * 256 * 16 / part["wgmma_m64n256k16_cycles"] * part["sms"] * part["clock_hz"]
    sheet.within("H800 wgmma FP16, from 128 cycles an instruction", rates["wgmma_fp16"][2] / 1e12, issue / 1e12,
                 "TFLOP/s", 0.05, "2 x 64 x 256 x 16 FLOP x 114 SMs x 1.62 GHz / 128")  # fmt: skip
    sheet.at_least(
        "H800 wgmma FP16 of that", 0.95, rates["wgmma_fp16"][2] / issue, "", "the paper: > 95 %, zero inputs"
    )
    sheet.within("H800 mma against wgmma, FP16", 0.68, rates["mma_fp16"][2] / rates["wgmma_fp16"][2], "", 0.01,
                 "cost of an Ampere-style kernel")  # fmt: skip
    mma = [rates[name][2] / rates[f"wg{name}"][2] for name in ("mma_fp16", "mma_int8")]
    sheet.within("H800 mma of its peak, mean", 0.629, sum(mma) / len(mma) * rates["wgmma_fp16"][2] / issue, "", 0.05,
                 "FP16 and INT8 only; the paper averages over more types")  # fmt: skip
    sheet.within("FP8 against FP16, wgmma", 2.0, rates["wgmma_fp8"][2] / rates["wgmma_fp16"][2], "x", 0.01, "measured")
    latency = data["latency_cycles"]
    sheet.within(
        "SM-to-SM latency against L2", -0.32, part["dsm_latency_cycles"] / latency["l2"][2] - 1, "", 0.02, "cycles"
    )


def _gemm_s(flop_per_s: float) -> float:
    """By the price of an operator, on a device whose matrix rate is the measured one."""
    device = Genz(Platform(flop_per_s=flop_per_s, memory_bytes=80e9, memory_bytes_per_s=2e12, link_bytes_per_s=1.0))
    return device.price(Gemm("gate_up", 8192, 8192, 8192, "float16", "float16")).seconds


def _decode(sheet: Sheet, data: dict[str, Any]) -> None:
    """Batch 8 decode is bound by the host: types that move fewer bytes gain nothing."""
    measured, batch = data["decode_tokens_per_s"], 8
    limits = Limits(flop_per_s=494.4e12, memory_bytes=80e9, memory_bytes_per_s=data["h800"]["memory_bytes_per_s"])
    device_s = {
        dtype: Peak(shape=LLAMA_3B, limits=limits, weights=dtype).step_s(batch, 192)
        for dtype in ("float32", "bfloat16", "fp8")
    }
    host_s = batch / measured["float32"]
    for dtype in ("float32", "bfloat16"):
        ceiling = batch / device_s[dtype]
        sheet.at_most(f"decode in {dtype}, batch 8: below the device's limit", ceiling, measured[dtype], "token/s",
                      "limit: twin/peak.py, ours left of it the paper's measurement")  # fmt: skip
    step = {dtype: max(host_s, seconds) for dtype, seconds in device_s.items()}
    sheet.at_most("gain of FP8 over BF16 in that decode", 0.10, step["bfloat16"] / step["fp8"] - 1, "",
                  "host time from the FP32 run, device time from the limits")  # fmt: skip
