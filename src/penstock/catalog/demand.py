"""What a model asks of hardware, whatever the hardware: FLOP, weight bytes and KV bytes.

1 multiply-add is 2 FLOP. Bytes include the scales of narrow types (`DTYPE_BYTES`). Contexts are in tokens and count the
token that is being computed. Everything is per model, not per device: `twin/memory.py` divides.
"""

from __future__ import annotations

from penstock.catalog.shape import DTYPE_BYTES, Attention, LayerGroup, ModelShape

STATE_DTYPE = "float32"
"""Of recurrent state, as Qwen3.5's config.json asks for (mamba_ssm_dtype)."""


def matrix_flop(shape: ModelShape, *, head: bool = True) -> float:
    """FLOP of one token's matrix products: 2 per active weight. `head` False: a prompt token that is not sampled from.

    >>> from penstock.catalog import model_shape
    >>> matrix_flop(model_shape("llama-3-8b")) / 2 == 8_030_261_248 - 128256 * 4096 - 65 * 4096    # no table, no norms
    True
    """
    hidden = shape.hidden
    layers = sum(
        group.active_parameters(hidden)
        - group.count * group.feed_forward.experts_per_token * group.feed_forward.bias_parameters(hidden)
        for group in shape.groups
    )
    return 2.0 * (layers + (shape.vocab * hidden if head else 0))


def attention_flop(shape: ModelShape, context: int, *, absorbed: bool = False) -> float:
    """FLOP of one token's scores and weighted sums over `context` tokens, all layers.

    `absorbed`: latent attention in the space of the latents, as decode does it; else with keys and values expanded.

    >>> from penstock.catalog import model_shape
    >>> attention_flop(model_shape("llama-3-8b"), 1000) == 4 * 32 * 32 * 128 * 1000    # layers, heads, width
    True
    """
    return sum(group.count * attention_flop_of(group.attention, context, absorbed=absorbed) for group in shape.groups)


def attention_flop_of(attention: Attention, context: int, *, absorbed: bool = False) -> float:
    """The same of one layer. A window and an indexer's `top_k` bound the context; the indexer itself sees all of it."""
    if attention.linear is not None:
        # Decay, read k.S, write k (x) v, read q.S: 1 + 3 x 2 FLOP per element of the recurrent state.
        return 7.0 * attention.linear.value_width * attention.linear.key_dim
    if attention.state_elements:
        return 7.0 * attention.state_elements
    seen = context if attention.window is None else min(context, attention.window)
    index = 0.0
    if attention.indexer is not None:
        index = 2.0 * attention.indexer.heads * attention.indexer.head_dim * seen
        seen = min(seen, attention.indexer.top_k)
    if attention.latent is None:
        return index + 2.0 * attention.heads * (attention.head_dim + attention.value_width) * seen
    mla = attention.latent
    width = 2 * mla.kv_rank + mla.rope_dim if absorbed else mla.nope_dim + mla.rope_dim + mla.value_dim
    return index + 2.0 * attention.heads * width * seen


def prompt_flop(shape: ModelShape, tokens: int) -> float:
    """FLOP of prefilling a prompt of `tokens`: causal, one row through the LM head.

    >>> from penstock.catalog import model_shape
    >>> prompt_flop(model_shape("llama-3-8b"), 1) == matrix_flop(m := model_shape("llama-3-8b")) + attention_flop(m, 1)
    True
    """
    pairs = sum(group.count * _causal_flop(group.attention, tokens) for group in shape.groups)
    return tokens * matrix_flop(shape, head=False) + 2.0 * shape.vocab * shape.hidden + pairs


def _causal_flop(attention: Attention, tokens: int) -> float:
    """Sum of `attention_flop_of` over contexts 1 to `tokens`: linear up to each bound, then constant."""
    if attention.state_elements:
        return tokens * attention_flop_of(attention, 1)
    index, rest = (attention.indexer, attention.indexer.top_k) if attention.indexer else (None, None)
    bound = min(filter(None, (attention.window, rest)), default=tokens)
    bound = min(bound, tokens)
    seen = bound * (bound + 1) / 2 + (tokens - bound) * bound
    light = 0.0
    if index is not None:
        light = 2.0 * index.heads * index.head_dim * tokens * (tokens + 1) / 2
    plain = attention_flop_of(attention, 1) - (2.0 * index.heads * index.head_dim if index is not None else 0.0)
    return light + plain * seen


def weight_bytes(
    shape: ModelShape, weights: str = "bfloat16", *, experts: str | None = None, head: str | None = None
) -> float:
    """Bytes of all weights: dense matrices in `weights`, routed experts in `experts` (None: the same), the LM head in
    `head`. Embedding table, norms and routers stay at 16 bits where the matrices are narrower; so does the head by
    default, as quantised checkpoints keep it.

    >>> from penstock.catalog import model_shape
    >>> weight_bytes(model_shape("llama-3-8b"))
    16060522496.0
    """
    wide = keep_wide(weights)
    table = DTYPE_BYTES[head or wide] if shape.tied_embeddings else DTYPE_BYTES[wide]
    size = table * shape.embedding_parameters + DTYPE_BYTES[head or wide] * shape.head_parameters
    size += DTYPE_BYTES[wide] * shape.other_parameters
    return size + sum(group.count * sum(layer_bytes(group, shape.hidden, weights, experts)) for group in shape.groups)


def keep_wide(dtype: str) -> str:
    """The type of what quantisation leaves alone: `dtype` itself where it has 16 bits or more, else bfloat16."""
    return dtype if DTYPE_BYTES[dtype] >= 2.0 else "bfloat16"


def layer_bytes(group: LayerGroup, hidden: int, weights: str, experts: str | None = None) -> tuple[float, float, float]:
    """Weight bytes of one layer of the group: attention, dense or shared MLP with the router, routed experts."""
    mlp, narrow = group.feed_forward, DTYPE_BYTES[experts or weights]
    attention = DTYPE_BYTES[weights] * group.attention.parameters(hidden)
    if not mlp.experts:
        return attention, DTYPE_BYTES[weights] * mlp.expert_parameters(hidden), 0.0
    router = DTYPE_BYTES[keep_wide(weights)] * hidden * mlp.experts
    shared = DTYPE_BYTES[weights] * mlp.matrices * hidden * mlp.shared_intermediate
    return attention, router + shared, narrow * mlp.experts * mlp.expert_parameters(hidden)


def decode_bytes(
    shape: ModelShape, batch: int, context: int, weights: str = "bfloat16", *, experts: str | None = None,
    head: str | None = None, kv: str = "bfloat16",
) -> float:  # fmt: skip
    """Bytes that one decode step of `batch` sequences of `context` tokens reads: each weight once, `batch` rows of the
    embedding table, of the experts those that get a token (uniform routing), and every sequence's KV.

    >>> from penstock.catalog import model_shape
    >>> m = model_shape("llama-3-8b")
    >>> decode_bytes(m, 1, 0) == weight_bytes(m) - (128256 - 1) * 4096 * 2
    True
    """
    wide = DTYPE_BYTES[keep_wide(weights)]
    size = wide * (batch * shape.hidden + shape.other_parameters)
    size += DTYPE_BYTES[head or keep_wide(weights)] * shape.vocab * shape.hidden
    for group in shape.groups:
        attention, common, routed = layer_bytes(group, shape.hidden, weights, experts)
        size += group.count * (attention + common + routed * touched_experts(group, batch))
    return size + batch * read_kv_bytes(shape, context, kv)


def touched_experts(group: LayerGroup, tokens: int) -> float:
    """Expected share of a layer's experts that get one of `tokens` at least, routed uniformly."""
    mlp = group.feed_forward
    return 1.0 - (1.0 - mlp.experts_per_token / mlp.experts) ** tokens if mlp.experts else 0.0


def kv_bytes_per_token(shape: ModelShape, dtype: str = "bfloat16") -> float:
    """KV bytes that one more token adds while it is inside every window: what a paged pool allocates.

    >>> from penstock.catalog import model_shape
    >>> [kv_bytes_per_token(model_shape(name)) for name in ("llama-3-8b", "yi-34b-200k", "deepseek-v3")]
    [131072.0, 245760.0, 70272.0]
    """
    return DTYPE_BYTES[dtype] * sum(group.count * group.attention.kv_elements() for group in shape.groups)


def kv_bytes(shape: ModelShape, tokens: int, dtype: str = "bfloat16") -> float:
    """Bytes that a sequence of `tokens` keeps: windows hold their last tokens only, recurrent layers a fixed state.

    >>> from penstock.catalog import model_shape
    >>> m = model_shape("gpt-oss-20b")                       # 12 layers see all, 12 the last 128 tokens
    >>> kv_bytes(m, 100_000) / kv_bytes_per_token(m) / 100_000
    0.50064
    """
    return sum(group.count * layer_kv_bytes(group.attention, tokens, dtype) for group in shape.groups)


def layer_kv_bytes(attention: Attention, tokens: int, dtype: str = "bfloat16") -> float:
    """The same of one layer."""
    kept = tokens if attention.window is None else min(tokens, attention.window)
    return DTYPE_BYTES[dtype] * attention.kv_elements() * kept + DTYPE_BYTES[STATE_DTYPE] * attention.state_elements


def read_kv_bytes(shape: ModelShape, tokens: int, dtype: str = "bfloat16") -> float:
    """Bytes one decode step reads of a sequence's KV. Less than it keeps only where an indexer picks tokens."""
    size = 0.0
    for group in shape.groups:
        attention = group.attention
        whole = layer_kv_bytes(attention, tokens, dtype)
        if attention.indexer is not None:
            seen = tokens if attention.window is None else min(tokens, attention.window)
            picked = max(0, seen - attention.indexer.top_k)
            whole -= DTYPE_BYTES[dtype] * (attention.kv_elements() - attention.indexer.head_dim) * picked
        size += group.count * whole
    return size
