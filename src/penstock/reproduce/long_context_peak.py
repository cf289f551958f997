"""Fu, "Challenges in Deploying Long-Context Transformers" (arXiv 2405.08944): a 34B model with 50K context on an A100.

The paper's running example, recomputed by `twin/peak.py` from the shape of Yi-34B-200K and the limits of an A100 80 GB.
Figures of the paper are those that public summaries of it quote; its own tables were not at hand.
"""

from __future__ import annotations

from typing import Final

from penstock.catalog.shape import Attention, FeedForward, LayerGroup, ModelShape
from penstock.reproduce.registry import Reproduction, Sheet
from penstock.twin.peak import Compression, Limits, Peak, Session

YI_34B: Final = ModelShape(
    name="yi-34b-200k", hidden=7168, vocab=64_000,
    groups=(
        LayerGroup(
            count=60, attention=Attention(heads=56, kv_heads=8, head_dim=128),
            feed_forward=FeedForward(intermediate=20_480),
        ),
    ),
    other_parameters=121 * 7168, max_context=200_000, source="config.json of 01-ai/Yi-34B-200K",
)  # fmt: skip
A100_80: Final = Limits(
    flop_per_s=312e12,  # datasheet, dense bf16
    memory_bytes=80 * 2**30,  # what the board reports; the sheet's 80 GB
    memory_bytes_per_s=2e12,  # datasheet 2,039 GB/s, which the paper rounds
    host_bytes_per_s=20e9,  # the paper's effective rate of PCIe 4.0 x16
)
_SUMMARY: Final = "public summary of the paper"


def run() -> Reproduction:
    sheet, peak = Sheet(), Peak(shape=YI_34B, limits=A100_80)
    as_fitted = Peak(shape=YI_34B, limits=A100_80, causal=1.0)
    gib = 2.0**30
    sheet.equal("KV of one token", 245_760, peak.kv_bytes(1), "B", "2 x 60 layers x 8 heads x 128 x 2 B")
    for context, paper in ((4_000, 0.916), (50_000, 11.44), (100_000, 22.89)):
        sheet.within(f"KV of {context:,} tokens", paper, peak.kv_bytes(context) / gib, "GiB", 0.03, _SUMMARY)
    sheet.within("users, 4,096 tokens each", 20, peak.users(4096), "", 0.30, f"{_SUMMARY}; weights as 2 B/parameter")
    sheet.equal("users, 50,000 tokens each", 1, peak.users(50_000), "", _SUMMARY)
    decimal = Peak(shape=YI_34B, limits=Limits(flop_per_s=312e12, memory_bytes=80e9, memory_bytes_per_s=2e12))
    sheet.info("users, 4,096 tokens each, 80 GB decimal", decimal.users(4096), "", "GB against GiB moves it by a third")
    for context, paper in ((4_000, 0.89), (50_000, 14.1)):
        ours = as_fitted.prefill_s(context)
        sheet.within(f"prefill of {context:,}, c = 1", paper, ours, "s", 0.05, f"{_SUMMARY}; c = 1 fits it")
        sheet.info(f"prefill of {context:,}, c = 2", peak.prefill_s(context), "s", "the exact causal count", paper)
    for context, paper in ((4_000, 8.5), (50_000, 9.8)):
        ours = peak.decode_s(250, context)
        sheet.within(f"a turn of 250 tokens at {context:,}", paper, ours, "s", 0.03, _SUMMARY)
    sheet.within(
        "switch 50,000 for 50,000", 1.2, peak.switch_s(50_000, 50_000), "s", 0.03, "(KV out + KV in) / 20 GB/s"
    )
    sheet.within(
        "critical intensity", 156, peak.critical_tokens, "tokens", 0.01, "312e12 / 2e12; the paper's A100 value"
    )
    session = Session(context=50_000, turns=5, think_s=30.0)
    for name, squeeze in (("as it is", Compression()), ("KV of 4 x fewer tokens", Compression(token=4.0))):
        result = Peak(shape=YI_34B, limits=A100_80, compression=squeeze).sessions(session)
        sheet.info(f"sessions of 5 turns, 30 s thinking, {name}", result.per_hour, "1/h", f"bound by {result.bound}")
    sheet.note(
        "Prefill: the paper's 0.89 s and 14.1 s fit c = 1 in (2 N s + c L d s^2) / F; q.k and p.v, causally masked, "
        "are c = 2, which twin/peak.py uses unless told otherwise."
    )
    sheet.note("Not stated in what could be read of the paper: layer shape, PCIe rate, and the 250 tokens of a turn.")
    return sheet.close("long-context-peak")
