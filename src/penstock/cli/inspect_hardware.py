"""`penstock inspect hardware [name]`: what there is, and what a device can do, each number with where it is from."""

from __future__ import annotations

import json
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from penstock.catalog.demand import decode_bytes, kv_bytes, prompt_flop, weight_bytes
from penstock.catalog.device import Device
from penstock.catalog.hardware_load import device, devices, figures, hardware
from penstock.catalog.models_by_name import model_shape
from penstock.cli.console import stdout
from penstock.cli.inspect_figures import as_data, show_figures, show_sources
from penstock.cli.inspect_wiring import list_wiring, show_wiring, wiring_rows
from penstock.twin.roofline import COMPUTED_AS, matrix_rate, memory_rate, ridge_point

EXAMPLE_MODEL: Final = "llama-2-7b"
_PROMPT: Final = 2048
_WEIGHTS: Final = ("bfloat16", "fp8", "int4")


def inspect_hardware(name: str | None, *, as_json: bool) -> None:
    """Shows the list of devices, nodes, clusters, links and tiers, or one of them with every figure; of a device its
    ridge points and its limits for a 7B-class model too.

    Raises InvalidDeployment: nothing has this name, or its file is not well formed.
    """
    if name is None:
        _show_all([device(each) for each in devices()], as_json)
        return
    found = hardware(name)
    if not isinstance(found, Device):
        show_wiring(found, as_json=as_json)
    elif as_json:
        print(json.dumps(facts(found)))
    else:
        _show_one(found)


def facts(found: Device) -> dict[str, Any]:
    """One device as plain data: figures by dotted place, ridge points, limits, sources."""
    return {
        "name": found.name,
        "title": found.title,
        "kind": found.kind,
        "aliases": list(found.aliases),
        "devices_per_node": found.devices_per_node,
        "peer_to_peer": found.peer_to_peer,
        "measured_as": found.measured_as,
        "group": "device",
        "figures": as_data(figures(found)),
        "ridge_flop_per_byte": {dtype: ridge_point(found, dtype) for dtype in found.matrix_flop_per_s},
        "speed_of_light": speed_of_light(found),
        "sources": {
            key: {"title": source.title, "url": source.url, "note": source.note}
            for key, source in found.sources.items()
        },
    }


def speed_of_light(found: Device, model: str = EXAMPLE_MODEL) -> list[dict[str, Any]]:
    """Limits of one device for `model`, by weights' dtype: no kernel, host or link time, peaks of compute and memory.

    prefill_tokens_per_s: of a prompt of 2,048 tokens. decode_tokens_per_s: one sequence at that context. batch: how
    many such sequences fit beside the weights, and decode_tokens_per_s_full with all of them. No rates: none fits.
    """
    shape = model_shape(model)
    rows = []
    for dtype in _WEIGHTS:
        weights = weight_bytes(shape, dtype)
        batch = max(0, int((found.memory_bytes.value - weights) // kv_bytes(shape, _PROMPT)))
        peak, bandwidth = matrix_rate(found, dtype, ideal=True), memory_rate(found, ideal=True)
        row: dict[str, Any] = {"model": model, "weights": dtype, "runs_as": _runs_as(found, dtype), "batch": batch}
        if batch:
            prefill_s = max(prompt_flop(shape, _PROMPT) / peak, weights / bandwidth)
            row["prefill_tokens_per_s"] = _PROMPT / prefill_s
            row["decode_tokens_per_s"] = bandwidth / decode_bytes(shape, 1, _PROMPT, dtype)
            row["decode_tokens_per_s_full"] = batch * bandwidth / decode_bytes(shape, batch, _PROMPT, dtype)
        rows.append(row)
    return rows


def _runs_as(found: Device, dtype: str) -> str:
    return next((each for each in COMPUTED_AS[dtype] if each in found.matrix_flop_per_s), "its slowest type")


def _show_all(found: list[Device], as_json: bool) -> None:
    if as_json:
        keys = ("memory_bytes", "memory_bytes_per_s", "peak_watts", "price_per_hour")
        print(
            json.dumps([
                {"group": "device", "name": each.name, "title": each.title, "kind": each.kind}
                | {"measured_as": each.measured_as}
                | {key: None if getattr(each, key) is None else getattr(each, key).value for key in keys}
                | {"matrix_flop_per_s": {dtype: figure.value for dtype, figure in each.matrix_flop_per_s.items()}}
                for each in found
            ] + wiring_rows())
        )  # fmt: skip
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("device", no_wrap=True)
    for heading in ("16-bit", "8-bit", "4-bit", "GiB", "GB/s", "link", "W", "$/h"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in found:
        kinds = (("bfloat16", "float16"), ("fp8", "int8"), ("nvfp4", "mxfp4"))
        table.add_row(
            f"{each.name}{' *' if each.measured_as and each.reached_flop_per_s else ''}",
            *(_peak(each, kind) for kind in kinds),
            f"{each.memory_bytes.value / 2**30:.0f}", f"{each.memory_bytes_per_s.value / 1e9:,.0f}",
            f"{each.scale_up.bytes_per_s.value / 1e9:.0f}" if each.scale_up else "-",
            f"{each.peak_watts.value:.0f}" if each.peak_watts else "-",
            f"{each.price_per_hour.value:.2f}" if each.price_per_hour else "-",
        )  # fmt: skip
    console = stdout()
    console.print(table)
    console.print(
        "Dense peaks in TFLOP/s; memory in GiB and GB/s; link to a node's other devices, one direction, in GB/s.\n"
        "* operators of it were measured. Prices are assumptions to set yourself.\n"
        "`penstock calibrate` adds this machine."
    )
    list_wiring(console)
    console.print("\n`penstock inspect hardware NAME` shows every figure of any of them with its source.")


def _peak(found: Device, dtypes: tuple[str, ...]) -> str:
    figure = next((found.matrix_flop_per_s[each] for each in dtypes if each in found.matrix_flop_per_s), None)
    if figure is None:
        return "-"
    tera = figure.value / 1e12
    return f"{tera:,.0f}" if tera >= 100 else f"{tera:.3g}"


def _show_one(found: Device) -> None:
    console = stdout()
    console.print(
        f"[bold]{escape(found.title)}[/] ({found.name}; also {', '.join(found.aliases) or 'no other name'})\n"
    )
    show_figures(console, figures(found))
    console.print("\n[bold]Ridge points[/]: FLOP per byte at which compute and memory are both full")
    console.print("  " + "   ".join(f"{dtype} {ridge_point(found, dtype):,.0f}" for dtype in found.matrix_flop_per_s))
    console.print(
        f"\n[bold]Speed of light[/] of one device, {EXAMPLE_MODEL}, prompts of {_PROMPT:,} tokens, 16-bit KV, tokens/s"
    )
    limits = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("weights", "runs as"):
        limits.add_column(heading)
    for heading in ("prefill/s", "decode/s, one", "sequences that fit", "decode/s, all"):
        limits.add_column(heading, justify="right")
    for row in speed_of_light(found):
        rates = [row.get(key) for key in ("prefill_tokens_per_s", "decode_tokens_per_s", "decode_tokens_per_s_full")]
        prefill, one, full = ("does not fit" if rate is None else f"{rate:,.0f}" for rate in rates)
        limits.add_row(row["weights"], row["runs_as"], prefill, one, f"{row['batch']:,}", full)
    console.print(limits)
    show_sources(console, found.sources)
