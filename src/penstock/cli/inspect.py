"""`penstock inspect model|hardware|fit`: what the catalogue knows, and what follows from it."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from penstock.cli.counts import count
from penstock.cli.effect import INSPECT, require_effect
from penstock.errors import BadInput

Text = Optional[str]  # noqa: UP045 - typer reads these at run time
WHAT = ("model", "hardware", "fit")


def inspect(
    command: typer.Context,
    what: Annotated[str, typer.Argument(metavar="model|hardware|fit")],
    name: Annotated[
        Text,
        typer.Argument(
            help="A model, or hardware: a device, node, cluster, link or tier; none: the list.", show_default=False
        ),
    ] = None,
    hardware: Annotated[Text, typer.Option(help="fit: the device; default h100-sxm.")] = None,
    context: Annotated[int, typer.Option(help="Tokens of one sequence.", **count("--context", least=1))] = 8192,
    dtype: Annotated[Text, typer.Option(help="Of weights; default: as published.")] = None,
    kv_dtype: Annotated[str, typer.Option(help="Of KV.")] = "bfloat16",
    tensor_parallel: Annotated[int, typer.Option("--tensor-parallel", "--tp", min=1, help="fit: devices.")] = 1,
    pipeline_parallel: Annotated[int, typer.Option("--pipeline-parallel", "--pp", min=1, help="fit: stages.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show a model (parameters, FLOP, KV), hardware (every figure with its source), or how one fits the other.

    penstock inspect model llama-3.1-8b; penstock inspect hardware h100-sxm; penstock inspect hardware dgx-h100;
    penstock inspect fit llama-3.1-70b --hardware h100-sxm --tp 4 --context 32k
    """
    from penstock.catalog.shape import DTYPE_BYTES

    if what in WHAT:
        require_effect(command, INSPECT)
    for flag, given in (("--dtype", dtype), ("--kv-dtype", kv_dtype)):
        if given is not None and given not in DTYPE_BYTES:
            raise BadInput(field=flag, value=given, why="no such type", remedy="one of " + ", ".join(DTYPE_BYTES))
    if what == "model":
        from penstock.cli.inspect_model import inspect_model, list_models

        if name is None:
            list_models(as_json)
        else:
            from penstock.catalog import model_shape
            from penstock.runtime.fingerprint import hash_of_model

            inspect_model(
                model_shape(name), context=context, dtype=dtype, kv_dtype=kv_dtype, as_json=as_json,
                checkpoint=hash_of_model(name),
            )  # fmt: skip
    elif what == "hardware":
        from penstock.cli.inspect_hardware import inspect_hardware

        inspect_hardware(name, as_json=as_json)
    elif what == "fit":
        from penstock.cli.inspect_fit import inspect_fit

        if name is None:
            raise BadInput(
                field="NAME", value=None, why="fit needs a model", remedy="penstock inspect fit llama-3.1-8b"
            )
        inspect_fit(
            name, hardware or "h100-sxm", context=context, dtype=dtype, kv_dtype=kv_dtype, tensor=tensor_parallel,
            pipeline=pipeline_parallel, as_json=as_json,
        )  # fmt: skip
    else:
        raise BadInput(
            field="WHAT", value=what, why="nothing of that name to inspect", remedy="one of " + ", ".join(WHAT)
        )
