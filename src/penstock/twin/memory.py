"""What fits on a device: its share of the weights, and the KV that is left room for.

The sum is vLLM's (vllm/worker, `determine_available_memory`): KV = fraction x total - weights - peak activations -
runtime. What CUDA graphs and the context take lies in the share that `fraction` leaves alone; graphs that need more
than that share take the rest from the KV. Bytes are of the busiest device. Pure functions, no hardware but a size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from penstock.catalog.demand import STATE_DTYPE, keep_wide, layer_bytes
from penstock.catalog.device import Figure
from penstock.catalog.shape import DTYPE_BYTES, Attention, LayerGroup, ModelShape
from penstock.errors import InvalidDeployment
from penstock.twin.layout import Layout, Precision
from penstock.units import format_bytes

GIB: Final = 2.0**30

MEMORY_FRACTION: Final = Figure(0.9, "assumed", "vLLM CacheConfig.gpu_memory_utilization, its default (0.19 too)")
SAMPLER_BYTES_PER_LOGIT: Final = Figure(
    31.0, "derived", "tensors of a top-k, top-p draw alive at once: logits in bf16 and fp32, sorted, their 64-bit "
    "places, a mask, probabilities, their running sum, the logits put back: 2 + 4 + 4 + 8 + 1 + 4 + 4 + 4",
    note="vLLM profiles its sampler so. Llama-3.1-8B on an RTX 4090, vLLM 0.19, 256 rows: 2,588 KV blocks measured "
    "(llmservingsim), 2,640 by this count, 2% more",
)  # fmt: skip
RUNTIME_BYTES: Final = Figure(
    0.07 * GIB, "measured", "vLLM pull request 21489: non-torch memory of gemma-3-4b-it on one GPU",
    note="libraries' own buffers; the CUDA context itself is in the share that the fraction leaves alone",
)  # fmt: skip
COLLECTIVE_BYTES: Final = Figure(
    411_041_792, "measured", "aiconfigurator-core 0.12, systems/h100_sxm.yaml, misc.nccl_mem of 4 and 8 ranks",
    note="358,612,992 for 2 ranks; 0 on one device",
)  # fmt: skip
GRAPH_BYTES: Final = Figure(
    0.65 * GIB, "measured", "vLLM pull request 21489: CUDA graphs of gemma-3-4b-it",
    note="1.3 GB for Llama 4 Maverick in the same place: it grows with layers and captured batch sizes",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """What is kept from the KV beside the weights. Defaults: vLLM on a data-centre GPU."""

    fraction: float = MEMORY_FRACTION.value
    """Share of the device's memory that the engine may use."""
    runtime_bytes: float = RUNTIME_BYTES.value
    collective_bytes: float = COLLECTIVE_BYTES.value
    """Added where a replica has more than one device."""
    graph_bytes: float = GRAPH_BYTES.value
    step_tokens: int = 8192
    """Tokens of the largest step (vLLM max_num_batched_tokens): what the activations' peak is profiled with."""
    sampled: int = 256
    """Rows of logits in that step (vLLM max_num_seqs)."""
    sampler_bytes_per_logit: float = SAMPLER_BYTES_PER_LOGIT.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How the busiest device's memory is shared out. Bytes; blocks are those of one attention group."""

    total_bytes: float
    reserve: Reserve
    weight_bytes: float
    activation_bytes: float
    runtime_bytes: float
    kv_bytes: float
    kv_bytes_per_token: float
    """On this device, all its layers alike (as in a pool that does not free what a window has left behind)."""
    block_tokens: int
    shape: ModelShape
    layout: Layout
    precision: Precision

    @property
    def state_bytes(self) -> float:
        """Of `kv_bytes`, what recurrent layers keep for as many sequences as may run at once (`reserve.sampled`), but
        no more than half: an engine that cannot hold so many runs fewer."""
        local = -(-self.reserve.sampled // self.layout.attention_dp)
        return min(local * self.sequence_bytes(0), max(0.0, self.kv_bytes) / 2)

    @property
    def blocks(self) -> int:
        """KV blocks of one attention group; a model without KV needs none, and has 0."""
        each = self.kv_bytes_per_token * self.block_tokens
        return int((self.kv_bytes - self.state_bytes) // each) if each else 0

    @property
    def kv_tokens(self) -> int:
        """Tokens that the replica's blocks hold, all attention groups together."""
        return self.blocks * self.block_tokens * self.layout.attention_dp

    def sequence_bytes(self, context: int) -> float:
        """Bytes on this device of one sequence of `context` tokens, in whole blocks, windows freed behind it."""
        tokens = -(-context // self.block_tokens) * self.block_tokens
        return sequence_bytes_per_device(self.shape, self.layout, self.precision, tokens)

    def sequences(self, context: int) -> int:
        """Sequences of `context` tokens that the replica can hold at once."""
        return int(self.kv_bytes // self.sequence_bytes(context)) * self.layout.attention_dp


def fit(
    shape: ModelShape, layout: Layout, precision: Precision, device_bytes: float, *,
    context: int | None = None, block_tokens: int = 16, reserve: Reserve | None = None,
) -> Fit:  # fmt: skip
    """What the busiest device holds. `context`: tokens of the longest sequence, which must fit (None: one block).

    Raises: InvalidDeployment: the layout does not go with the model, or the weights or one sequence do not fit. Says
    the numbers, and what would fit.

    >>> from penstock.catalog import model_shape
    >>> room = fit(model_shape("llama-3-8b"), Layout(), Precision(), 80e9)
    >>> round(room.weight_bytes / 1e9, 2), round(room.kv_bytes / 1e9, 1), room.sequences(8192)
    (16.06, 54.7, 50)
    """
    check_layout(shape, layout)
    room = _share_out(shape, layout, precision, device_bytes, block_tokens, reserve or Reserve())
    if room.kv_bytes <= 0:
        raise _weights_do_not_fit(room)
    needed = context if context is not None else block_tokens
    if room.sequence_bytes(needed) > room.kv_bytes:
        raise _sequence_does_not_fit(room, needed)
    return room


def published_precision(shape: ModelShape) -> Precision:
    """The types a model is published in; activations, KV and the LM head stay at 16 bits or more.

    >>> from penstock.catalog import model_shape
    >>> published_precision(model_shape("gpt-oss-120b")).experts, published_precision(model_shape("deepseek-v3")).kv
    ('mxfp4', 'bfloat16')
    """
    wide = keep_wide(shape.dtype)
    return Precision(
        weights=shape.dtype, experts=shape.experts_dtype or shape.dtype, activations=wide, kv=wide, head=wide
    )


def check_layout(shape: ModelShape, layout: Layout) -> None:
    """Raises InvalidDeployment where the model cannot be cut that way."""
    if layout.pipeline_parallel > shape.layers:
        raise InvalidDeployment(
            field="layout.pipeline_parallel", value=layout.pipeline_parallel,
            why=f"{shape.name} has {shape.layers} layers", remedy=f"{shape.layers} or less",
        )  # fmt: skip
    for group in shape.groups:
        if group.attention.heads % layout.tensor_parallel:
            raise InvalidDeployment(
                field="layout.tensor_parallel", value=layout.tensor_parallel,
                why=f"it does not divide the {group.attention.heads} heads of {shape.name}",
                remedy=f"one of {', '.join(map(str, _divisors(shape)))}",
            )  # fmt: skip
        experts = group.feed_forward.experts
        if not experts:
            continue
        stage, cut = layout.tensor_parallel * layout.attention_dp, layout.moe_tensor_parallel * layout.expert_parallel
        if cut != stage:
            raise InvalidDeployment(
                field="layout.expert_parallel", value=layout.expert_parallel,
                why=f"moe_tensor_parallel x expert_parallel is {cut}, and a stage has {stage} devices "
                "(tensor_parallel x attention_dp)",
                remedy=f"moe_tensor_parallel: 1 with expert_parallel: {stage}, or the other way round",
            )  # fmt: skip
        if layout.expert_parallel > experts:
            raise InvalidDeployment(
                field="layout.expert_parallel", value=layout.expert_parallel,
                why=f"{shape.name} has {experts} experts", remedy=f"{experts} or less",
            )  # fmt: skip


def weight_bytes_per_device(shape: ModelShape, layout: Layout, precision: Precision) -> float:
    """Weights of the busiest device.

    KV heads, MLA's down-projections, routers and norms are copied where they cannot be cut. A pipeline stage has
    ceil(layers / stages) layers of the average size, and the first or the last has the embedding table or the head.

    >>> from penstock.catalog import model_shape
    >>> weight_bytes_per_device(model_shape("llama-3-70b"), Layout(tensor_parallel=4), Precision())
    35278831616.0
    """
    wide, rows = DTYPE_BYTES[precision.activations], -(-shape.vocab // layout.tensor_parallel)
    table = wide * rows * shape.hidden
    head = 0.0 if shape.tied_embeddings else DTYPE_BYTES[precision.head] * rows * shape.hidden
    if shape.tied_embeddings and layout.pipeline_parallel > 1:
        head = table  # the last stage has a copy of its own
    ends = table + head if layout.pipeline_parallel == 1 else max(table, head)
    layers = sum(group.count * _layer_bytes(group, shape.hidden, layout, precision) for group in shape.groups)
    return ends + (layers + wide * shape.other_parameters) * _stage_share(shape, layout)


def kv_bytes_per_token_per_device(shape: ModelShape, layout: Layout, precision: Precision) -> float:
    """KV bytes that one more token takes on a device of its attention group, inside every window."""
    elements = sum(g.count * per_device(g.attention, layout.tensor_parallel).kv_elements() for g in shape.groups)
    return DTYPE_BYTES[precision.kv] * elements * _stage_share(shape, layout)


def sequence_bytes_per_device(shape: ModelShape, layout: Layout, precision: Precision, tokens: int) -> float:
    """KV and state of one sequence of `tokens` on a device of its attention group."""
    size = 0.0
    for group in shape.groups:
        local = per_device(group.attention, layout.tensor_parallel)
        kept = tokens if local.window is None else min(tokens, local.window)
        kv = DTYPE_BYTES[precision.kv] * local.kv_elements() * kept
        size += group.count * (kv + DTYPE_BYTES[STATE_DTYPE] * local.state_elements)
    return size * _stage_share(shape, layout)


def activation_bytes(shape: ModelShape, layout: Layout, precision: Precision, reserve: Reserve) -> float:
    """Peak of what a step of `reserve.step_tokens` keeps at once: residual and its norm, beside them the widest of QKV
    with the heads' outputs, the MLP's inner width, the experts' rows, or what sampling makes of the logits. A count
    of tensors, not a measurement: allocators and fused kernels move it by tens of per cent."""
    element, rows = DTYPE_BYTES[precision.activations], -(-reserve.step_tokens // layout.attention_dp)
    widest = 0.0
    for group in shape.groups:
        local, mlp = per_device(group.attention, layout.tensor_parallel), group.feed_forward
        qkv = 2 * local.heads * local.head_dim + 2 * local.kv_heads * local.head_dim
        width = mlp.matrices * -(-(mlp.shared_intermediate or mlp.intermediate) // layout.tensor_parallel)
        widest = max(widest, element * rows * max(qkv, width))
        if mlp.experts:
            # Rows that reach this device's experts, each with its inner widths and its output.
            reached = reserve.step_tokens * mlp.experts_per_token / layout.expert_parallel
            inner = mlp.matrices * -(-mlp.intermediate // layout.moe_tensor_parallel)
            widest = max(widest, element * reached * (inner + shape.hidden))
    sampled = -(-reserve.sampled // layout.attention_dp)
    logits = sampled * shape.vocab * reserve.sampler_bytes_per_logit
    return 2 * element * rows * shape.hidden + max(widest, logits)


def per_device(attention: Attention, parts: int) -> Attention:
    """One device's share of a layer's attention. Heads that are fewer than the devices are copied; latents always."""
    if parts == 1:
        return attention
    linear, state = attention.linear, -(-attention.state_elements // parts)
    if linear is not None:
        linear = replace(
            linear, key_heads=-(-linear.key_heads // parts), value_heads=-(-linear.value_heads // parts)
        )  # fmt: skip
        state = linear.state_elements
    return replace(
        attention, heads=-(-attention.heads // parts), kv_heads=-(-attention.kv_heads // parts), linear=linear,
        state_elements=state,
    )  # fmt: skip


def _layer_bytes(group: LayerGroup, hidden: int, layout: Layout, precision: Precision) -> float:
    mlp, parts = group.feed_forward, layout.tensor_parallel
    cut = layout.moe_tensor_parallel if mlp.experts else parts
    local = replace(
        mlp, intermediate=-(-mlp.intermediate // cut), shared_intermediate=-(-mlp.shared_intermediate // parts)
    )
    here = replace(group, attention=per_device(group.attention, parts), feed_forward=local)
    attention, dense, routed = layer_bytes(here, hidden, precision.weights, precision.experts)
    held = -(-mlp.experts // layout.expert_parallel) / mlp.experts if mlp.experts else 0.0
    return attention + dense + routed * held


def _stage_share(shape: ModelShape, layout: Layout) -> float:
    """Of all layers, those of the busiest stage."""
    return -(-shape.layers // layout.pipeline_parallel) / shape.layers


def _share_out(
    shape: ModelShape, layout: Layout, precision: Precision, total: float, block_tokens: int, reserve: Reserve
) -> Fit:
    weights = weight_bytes_per_device(shape, layout, precision)
    activations = activation_bytes(shape, layout, precision, reserve)
    runtime = reserve.runtime_bytes + (reserve.collective_bytes if layout.devices > 1 else 0.0)
    runtime += max(0.0, reserve.graph_bytes - (1.0 - reserve.fraction) * total)
    return Fit(
        total_bytes=total, reserve=reserve, weight_bytes=weights, activation_bytes=activations, runtime_bytes=runtime,
        kv_bytes=reserve.fraction * total - weights - activations - runtime, block_tokens=block_tokens,
        kv_bytes_per_token=kv_bytes_per_token_per_device(shape, layout, precision),
        shape=shape, layout=layout, precision=precision,
    )  # fmt: skip


def _divisors(shape: ModelShape) -> list[int]:
    heads = [group.attention.heads for group in shape.groups]
    return [parts for parts in (1, 2, 4, 8, 16, 32, 64) if all(count % parts == 0 for count in heads)]


def _more_devices(room: Fit, context: int) -> str | None:
    """The smallest wider cut, all else equal, on which the weights and one sequence fit."""
    for parts in _divisors(room.shape):
        if parts <= room.layout.tensor_parallel:
            continue
        times = parts // room.layout.tensor_parallel
        layout = replace(
            room.layout, tensor_parallel=parts, moe_tensor_parallel=room.layout.moe_tensor_parallel * times
        )
        wider = _share_out(room.shape, layout, room.precision, room.total_bytes, room.block_tokens, room.reserve)
        if wider.kv_bytes > 0 and wider.sequence_bytes(context) <= wider.kv_bytes:
            return f"tensor_parallel: {parts}"
    return None


def _sum(room: Fit) -> str:
    return (
        f"{format_bytes(room.total_bytes)} x {room.reserve.fraction:g} - {format_bytes(room.weight_bytes)} of weights"
        f" - {format_bytes(room.activation_bytes)} of activations - {format_bytes(room.runtime_bytes)} of runtime"
    )


def _weights_do_not_fit(room: Fit) -> InvalidDeployment:
    options = [_more_devices(room, room.block_tokens)]
    for dtype in ("fp8", "int4"):
        narrow = replace(room.precision, weights=dtype, experts=dtype)
        smaller = _share_out(room.shape, room.layout, narrow, room.total_bytes, room.block_tokens, room.reserve)
        if DTYPE_BYTES[dtype] < DTYPE_BYTES[room.precision.weights] and smaller.kv_bytes > 0:
            options.append(f"weights in {dtype} ({format_bytes(smaller.weight_bytes)})")
            break
    options.append("a device with more memory")
    return InvalidDeployment(
        field="layout", value=_cut(room.layout),
        why=f"{room.shape.name} leaves no room for KV: {_sum(room)} = {format_bytes(room.kv_bytes)}",
        remedy="; or ".join(option for option in options if option),
    )  # fmt: skip


def _sequence_does_not_fit(room: Fit, context: int) -> InvalidDeployment:
    needed = room.sequence_bytes(context)
    low, high = 0, context
    while high - low > 1:  # the largest context that fits
        middle = (low + high) // 2
        low, high = (middle, high) if room.sequence_bytes(middle) <= room.kv_bytes else (low, middle)
    options = [f"{low} or less" if low >= room.block_tokens else None, _more_devices(room, context)]
    if DTYPE_BYTES[room.precision.kv] > 1.0:
        options.append("KV in fp8, half the bytes")
    options.append("a device with more memory")
    return InvalidDeployment(
        field="model.max_sequence_tokens", value=context,
        why=f"one sequence needs {format_bytes(needed)} of KV on each device "
        f"({room.kv_bytes_per_token:,.0f} B per token); {format_bytes(room.kv_bytes)} are left ({_sum(room)})",
        remedy="; or ".join(option for option in options if option),
    )  # fmt: skip


def _cut(layout: Layout) -> str:
    return f"TP {layout.tensor_parallel}, PP {layout.pipeline_parallel}, DP {layout.attention_dp}"
