"""`penstock inspect fit`: how a model shares out a device's memory, and the four limits of long contexts on it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from penstock.catalog import model_shape
from penstock.catalog.hardware_load import device as catalog_device
from penstock.deployment import Deployment
from penstock.runtime.forms import served_forms
from penstock.runtime.idealized import idealized
from penstock.runtime.modelled import model
from penstock.twin.layout import Layout, Precision
from penstock.twin.memory import fit
from penstock.twin.peak import Limits, Peak
from penstock.units import format_bytes

CONTEXTS: Final = (1024, 4096, 16384, 32768, 131072)


def inspect_fit(
    name: str, hardware: str, *, context: int, dtype: str | None, kv_dtype: str, tensor: int, pipeline: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Print how the memory is shared out, what fits, and the peak limits.

    Raises InvalidDeployment: unknown names, or it does not fit; with the numbers and what would.
    """
    shape, device = model_shape(name), catalog_device(hardware)
    weights = dtype or shape.dtype
    experts = dtype or shape.experts_dtype or weights
    layout = Layout(
        tensor_parallel=tensor, pipeline_parallel=pipeline, moe_tensor_parallel=tensor,
        devices_per_node=device.devices_per_node,
    )  # fmt: skip
    precision = Precision(weights=weights, experts=experts, kv=kv_dtype)
    room = fit(shape, layout, precision, device.memory_bytes.value, context=context)
    peak = Peak(
        shape=shape, limits=Limits.of(device, weights, layout.devices), weights=weights, experts=experts, kv=kv_dtype
    )
    facts: dict[str, Any] = {
        "model": shape.name, "hardware": device.name, "devices": layout.devices, "weights": weights, "kv": kv_dtype,
        "per_device": {
            "memory_bytes": room.total_bytes, "usable_share": room.reserve.fraction, "weight_bytes": room.weight_bytes,
            "activation_bytes": room.activation_bytes, "runtime_bytes": room.runtime_bytes, "kv_bytes": room.kv_bytes,
        },
        "kv_bytes_per_token": peak.kv_bytes(context) / context, "kv_tokens": room.kv_tokens, "blocks": room.blocks,
        "critical_tokens": peak.critical_tokens,
        "contexts": [
            {
                "context": tokens, "sequences": room.sequences(tokens), "peak_users": peak.users(tokens),
                "prefill_s": peak.prefill_s(tokens), "decode_step_s": peak.step_s(1, tokens),
                "switch_s": peak.switch_s(tokens, tokens) if device.host_link is not None else None,
            }
            for tokens in sorted({*CONTEXTS, context})
            if not shape.max_context or tokens <= max(shape.max_context, context)
        ],
    }  # fmt: skip
    alone = idealized(
        model(
            Deployment.parse(
                {
                    "model": {"path": name}, "hardware": {"name": hardware},
                    "layout": {"tensor_parallel": tensor, "pipeline_parallel": pipeline},
                    "precision": {"weights": dtype, "kv": kv_dtype}, "policy": {"token_budget": 8192},
                }
            )
        )
    )  # fmt: skip
    facts["idealized_runtime"] = {**alone.affine.as_json(), "r_squared": alone.r_squared}
    facts["served"] = [asdict(one) for one in served_forms(name)]
    if as_json:
        print(json.dumps(facts))
        return
    console = Console(highlight=False)
    table = Table(title=f"{shape.name} ({weights}) on {layout.devices} x {device.title}, each device")
    table.add_column("")
    table.add_column("", justify="right")
    shares = facts["per_device"]
    for label, key in (("memory", "memory_bytes"), ("weights", "weight_bytes"), ("activations", "activation_bytes"),
                       ("runtime, graphs, collectives", "runtime_bytes"), ("left for KV", "kv_bytes")):  # fmt: skip
        table.add_row(label, format_bytes(shares[key]))
    table.add_row("KV of one token, all devices", f"{facts['kv_bytes_per_token']:,.0f} B")
    table.add_row("tokens that fit", f"{room.kv_tokens:,}")
    table.add_row("tokens in flight where compute binds", f"{peak.critical_tokens:,.0f}")
    console.print(table)
    limits = Table(title="Limits by context, without queueing or inefficiency (arXiv 2405.08944)")
    for column in ("context", "sequences that fit", "users, memory alone", "prefill", "decode step, one", "switch"):
        limits.add_column(column, justify="right")
    for row in facts["contexts"]:
        switch = "-" if row["switch_s"] is None else f"{row['switch_s'] * 1e3:,.1f} ms"
        limits.add_row(
            f"{row['context']:,}", f"{row['sequences']:,}", f"{row['peak_users']:,}",
            f"{row['prefill_s'] * 1e3:,.1f} ms", f"{row['decode_step_s'] * 1e3:,.2f} ms", switch,
        )  # fmt: skip
    console.print(limits)
    by_prompt = Table(
        title="Idealized runtime, one request alone: alpha(prompt) + beta (output - 1) (arXiv 2305.02440)"
    )
    by_prompt.add_column("beta", justify="right")
    for length, _ in alone.affine.prompt_s:
        by_prompt.add_column(f"alpha({length:,})", justify="right")
    times = [alone.affine.token_s, *(seconds for _, seconds in alone.affine.prompt_s)]
    by_prompt.add_row(*(f"{seconds * 1e3:,.2f} ms" for seconds in times))
    console.print(by_prompt)
    if facts["served"]:
        console.print(_served_table(facts["served"]))


def _served_table(forms: list[dict[str, Any]]) -> Table:
    table = Table(title="What serving this checkpoint takes by model.dtype")
    for column in ("model.dtype", "weights", "activations and KV", "KV of one token", "runs on"):
        table.add_column(column, justify="left" if column in ("model.dtype", "activations and KV") else "right")
    for one in forms:
        table.add_row(
            one["dtype"], format_bytes(one["weight_bytes"]), one["compute"], f"{one['kv_bytes_per_token']:,} B",
            one["device"] or "any",
        )  # fmt: skip
    return table
