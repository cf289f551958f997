"""`penstock inspect model`: what a model is made of, and what it asks of hardware before any is chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from rich.table import Table

from penstock.catalog.demand import (
    attention_flop,
    decode_bytes,
    kv_bytes,
    kv_bytes_per_token,
    matrix_flop,
    weight_bytes,
)
from penstock.catalog.models_by_name import architectures
from penstock.catalog.shape import DTYPE_BYTES, Attention, FeedForward, LayerGroup, ModelShape
from penstock.cli.console import stdout
from penstock.errors import BadInput
from penstock.units import format_bytes

CONTEXTS: Final = (1024, 8192, 32_768, 131_072)
_WEIGHTS: Final = ("bfloat16", "fp8", "int4", "nvfp4", "mxfp4")


def inspect_model(
    shape: ModelShape, *, context: int | None = None, dtype: str | None = None, kv_dtype: str = "bfloat16",
    as_json: bool = False, checkpoint: str | None = None,
) -> None:  # fmt: skip
    """Print a model's parameters, weight bytes, FLOP and KV. `context` is looked at beside the usual four; `dtype` is
    that of the weights (None: as published); `checkpoint` the hash of its files, if there are any.

    Raises: BadInput: a type that is not known.
    """
    facts = {**model_facts(shape, context=context, dtype=dtype, kv_dtype=kv_dtype), "checkpoint": checkpoint}
    if as_json:
        print(json.dumps(facts))
        return
    console = stdout()
    console.print(_overview(shape, facts))
    console.print(_by_context(facts))
    console.print(_layers(facts))


def list_models(as_json: bool = False) -> None:
    """Print every public architecture in the catalogue."""
    rows: list[dict[str, Any]] = [
        {"name": a.name, "repository": a.repository, "parameters": shape.parameters, "source": a.source}
        for a in architectures().values() for shape in (a.shape(),)
    ]  # fmt: skip
    if as_json:
        print(json.dumps(rows))
        return
    table = _table(f"{len(rows)} public architectures", "name", "parameters", "repository")
    for row in rows:
        table.add_row(row["name"], _count(row["parameters"]), row["repository"] or row["source"])
    stdout().print(table)


def model_facts(
    shape: ModelShape, *, context: int | None = None, dtype: str | None = None, kv_dtype: str = "bfloat16"
) -> dict[str, Any]:
    """The same as plain data: counts, bytes, FLOP."""
    for field, value in (("dtype", dtype), ("kv_dtype", kv_dtype)):
        if value is not None and value not in DTYPE_BYTES:
            raise BadInput(field=field, value=value, why="no such type is known", remedy=", ".join(DTYPE_BYTES))
    if context is not None and context < 1:
        raise BadInput(field="context", value=context, why="a context has a token at least", remedy="1 or more")
    weights, experts = (dtype, dtype) if dtype else (str(shape.dtype), shape.experts_dtype)
    contexts = sorted({*CONTEXTS, *filter(None, (context, shape.max_context))})
    # Beyond what the model was made for, the numbers would describe nothing.
    contexts = [c for c in contexts if not shape.max_context or c <= shape.max_context or c == context]
    return {
        "name": shape.name,
        "source": shape.source,
        "parameters": shape.parameters,
        "active_parameters": shape.active_parameters,
        "expert_parameters": shape.expert_parameters,
        "embedding_parameters": shape.embedding_parameters,
        "tied_embeddings": shape.tied_embeddings,
        "layers": shape.layers,
        "hidden": shape.hidden,
        "vocab": shape.vocab,
        "max_context": shape.max_context,
        "dtype": weights,
        "experts_dtype": experts or weights,
        "kv_dtype": kv_dtype,
        "weight_bytes": weight_bytes(shape, weights, experts=experts),
        "weight_bytes_by_dtype": {name: weight_bytes(shape, name) for name in _WEIGHTS},
        "matrix_flop_per_token": matrix_flop(shape),
        "kv_bytes_per_token": kv_bytes_per_token(shape, kv_dtype),
        "by_context": [
            {
                "context": tokens,
                "attention_flop_per_token": attention_flop(shape, tokens, absorbed=True),
                "flop_per_token": matrix_flop(shape) + attention_flop(shape, tokens, absorbed=True),
                "kv_bytes": kv_bytes(shape, tokens, kv_dtype),
                "decode_bytes": decode_bytes(shape, 1, tokens, weights, experts=experts, kv=kv_dtype),
            }
            for tokens in contexts
        ],
        "groups": [_group(group, shape, kv_dtype) for group in shape.groups],
    }


def _group(group: LayerGroup, shape: ModelShape, kv_dtype: str) -> dict[str, Any]:
    return {
        "count": group.count,
        "attention": describe_attention(group.attention),
        "feed_forward": _describe_feed_forward(group.feed_forward),
        "parameters": group.parameters(shape.hidden),
        "active_parameters": group.active_parameters(shape.hidden),
        "kv_bytes_per_token": DTYPE_BYTES[kv_dtype] * group.count * group.attention.kv_elements(),
    }


def describe_attention(attention: Attention) -> str:
    """
    >>> describe_attention(Attention(heads=32, kv_heads=8, head_dim=128, window=4096))
    'GQA 32/8 x 128, window 4,096'
    """
    if attention.linear is not None:
        linear = attention.linear
        return f"Gated DeltaNet {linear.value_heads}/{linear.key_heads} x {linear.key_dim} x {linear.value_dim}"
    if attention.latent is not None:
        mla = attention.latent
        text = f"MLA {attention.heads} x {mla.nope_dim}+{mla.rope_dim}, latent {mla.kv_rank}"
    else:
        kind = {attention.heads: "MHA", 1: "MQA"}.get(attention.kv_heads, "GQA")
        text = f"{kind} {attention.heads}/{attention.kv_heads} x {attention.head_dim}"
    if attention.window is not None:
        text += f", window {attention.window:,}"
    if attention.indexer is not None:
        text += f", best {attention.indexer.top_k:,} tokens"
    return text


def _describe_feed_forward(mlp: FeedForward) -> str:
    if not mlp.experts:
        return f"MLP {mlp.intermediate:,}"
    shared = f" + shared {mlp.shared_intermediate:,}" if mlp.shared_intermediate else ""
    return f"{mlp.experts_per_token} of {mlp.experts} experts x {mlp.intermediate:,}{shared}"


def _overview(shape: ModelShape, facts: Mapping[str, Any]) -> Table:
    table = _table(shape.name, "", "")
    types = facts["dtype"] if facts["experts_dtype"] == facts["dtype"] else (
        f"{facts['dtype']}, experts {facts['experts_dtype']}"
    )  # fmt: skip
    rows = [
        ("parameters", f"{shape.parameters:,} ({_count(shape.parameters)})"),
        ("active per token", f"{shape.active_parameters:,} ({_count(shape.active_parameters)})"),
        ("layers, width, vocabulary", f"{shape.layers}, {shape.hidden:,}, {shape.vocab:,}"),
        ("context it was made for", f"{shape.max_context:,} tokens" if shape.max_context else "not stated"),
        (f"weights in {types}", format_bytes(facts["weight_bytes"])),
        *((f"weights in {name}", format_bytes(size)) for name, size in facts["weight_bytes_by_dtype"].items()
          if name != types),
        ("matrix products per token", f"{facts['matrix_flop_per_token'] / 1e9:,.2f} GFLOP"),
        (f"KV per token in {facts['kv_dtype']}", f"{facts['kv_bytes_per_token']:,.0f} B"),
        ("source", shape.source),
        *([("checkpoint", facts["checkpoint"])] if facts["checkpoint"] else ()),
    ]  # fmt: skip
    for row in rows:
        table.add_row(*row)
    return table


def _by_context(facts: Mapping[str, Any]) -> Table:
    table = _table(
        "One token at a context", "context", "attention GFLOP", "all GFLOP", "KV of the sequence", "read to decode"
    )
    for row in facts["by_context"]:
        table.add_row(
            f"{row['context']:,}", f"{row['attention_flop_per_token'] / 1e9:,.2f}",
            f"{row['flop_per_token'] / 1e9:,.2f}", format_bytes(row["kv_bytes"]), format_bytes(row["decode_bytes"]),
        )  # fmt: skip
    return table


def _layers(facts: Mapping[str, Any]) -> Table:
    table = _table("Layers", "count", "attention", "feed-forward", "parameters", "KV per token")
    for group in facts["groups"]:
        table.add_row(
            str(group["count"]), group["attention"], group["feed_forward"], _count(group["parameters"]),
            f"{group['kv_bytes_per_token']:,.0f} B",
        )  # fmt: skip
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _count(value: float) -> str:
    """
    >>> _count(8_030_261_248)
    '8.03 B'
    """
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= scale:
            return f"{value / scale:.4g} {suffix}" if value >= 100 * scale else f"{value / scale:.2f} {suffix}"
    return f"{value:,.0f}"
