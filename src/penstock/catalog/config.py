"""A model's shape from its Hugging Face config.json, whatever the family calls its widths.

Three questions, one function each: which kind of attention layer i has, which MLP, and what there is beside the
matrices (norms, biases, learned positions). `families.py` holds what a config leaves unsaid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from penstock.catalog.checkpoint_dtype import published_dtypes
from penstock.catalog.families import Config, Family, Flag, family_of
from penstock.catalog.shape import Attention, FeedForward, Indexer, Latent, LayerGroup, Linear, ModelShape
from penstock.errors import UnsupportedModel

_HIDDEN: Final = ("hidden_size", "n_embd", "n_embed", "d_model")
_LAYERS: Final = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS: Final = ("num_attention_heads", "n_head", "n_heads")
_KV_HEADS: Final = ("num_key_value_heads", "num_kv_heads", "multi_query_group_num", "n_head_kv")
_HEAD_DIM: Final = ("head_dim", "kv_channels", "attention_head_dim")
_INTERMEDIATE: Final = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
_VOCAB: Final = ("vocab_size", "padded_vocab_size")
_CONTEXT: Final = (
    "max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len", "max_sequence_length",
)  # fmt: skip
_EXPERTS: Final = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN: Final = (
    "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_k", "top_k_experts",
)  # fmt: skip
_EXPERT_WIDTH: Final = ("moe_intermediate_size", "expert_intermediate_size", "moe_ffn_hidden_size")
_SHARED_WIDTH: Final = ("shared_expert_intermediate_size", "shared_intermediate_size", "share_expert_dim")
_NESTED: Final = ("text_config", "llm_config", "language_config")
_INHERITED: Final = ("tie_word_embeddings", "torch_dtype", "dtype", "quantization_config")
_FULL, _SLIDING, _CHUNKED, _LINEAR = "full", "sliding", "chunked", "linear"
_LAYER_TYPES: Final = {
    "full_attention": _FULL, "attention": _FULL, "sliding_attention": _SLIDING, "chunked_attention": _CHUNKED,
    "linear_attention": _LINEAR, "deepseek_sparse_attention": _FULL,
}  # fmt: skip
_MOST_LAYERS: Final = 10_000
_FOUR_TIMES_WIDE: Final = ("gpt2", "gpt_bigcode", "gptj", "gpt_neox", "bloom", "falcon", "mpt")
_NOT_MODELLED: Final[Mapping[str, str]] = {
    "compress_ratios": "attention over compressed keys (DeepSeek-V4)",
    "hybrid_override_pattern": "Mamba layers",
    "ssm_state_size": "Mamba layers",
    "mamba_d_state": "Mamba layers",
    "state_size": "Mamba layers",
    "sparse_attention_config": "block-sparse attention",
    "linear_attn_config": "Kimi Delta Attention",
    "block_configs": "layers of differing widths",
    "hybrid_layer_pattern": "two head widths in one model",
    "num_kv_shared_layers": "layers that share their KV",
    "hidden_size_per_layer_input": "per-layer embeddings",
    "global_head_dim": "two head widths in one model",
    "num_encoder_layers": "an encoder",
    "is_encoder_decoder": "an encoder",
}
_PLAIN_ONLY: Final[Mapping[str, tuple[object, str]]] = {
    "attn_type_list": (1, "lightning attention"),
    "indexer_types": ("full", "layers that share another's indexer"),
}
"""Lists with an entry per layer, and the one entry that is modelled."""


def shape_from_config(config: Mapping[str, Any], name: str = "") -> ModelShape:
    """The shape that a config.json describes. The language model only: vision towers and next-token-prediction layers
    are left out.

    Raises: UnsupportedModel: a key is missing or holds nonsense, or the model has parts whose work is not modelled.

    >>> shape_from_config({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
    ...                    "intermediate_size": 128}).parameters
    95040
    """
    try:
        return _shape(_flat(config), name)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        # A key whose value is of another kind altogether: a string for a list, a list for a number.
        raise UnsupportedModel(
            field="config.json", value=dict(config), why=f"a key holds a value of the wrong kind ({error})",
            remedy="the config.json as its repository has it",
        ) from error  # fmt: skip


def _shape(config: dict[str, Any], name: str) -> ModelShape:
    family = family_of(config)
    config = {**family.defaults, **config}
    if family.standard_keys is not None:
        config |= family.standard_keys(config)
    _refuse_what_is_not_modelled(config)
    hidden, layers = _whole(config, _HIDDEN), _whole(config, _LAYERS)
    if layers > _MOST_LAYERS:
        raise UnsupportedModel(
            field=_LAYERS[0], value=layers, why="no model has that many layers", remedy=f"{_MOST_LAYERS} or less"
        )
    kinds, sparse = attention_kinds(config, layers), sparse_layers(config, layers)
    stack = [
        (_attention(config, hidden, kind), _feed_forward(config, family, hidden, is_sparse))
        for kind, is_sparse in zip(kinds, sparse, strict=True)
    ]
    # A Counter keeps the order of first sight: equal layers fall into one group.
    groups = tuple(
        LayerGroup(count=count, attention=attention, feed_forward=feed_forward)
        for (attention, feed_forward), count in Counter(stack).items()
    )
    dtype, experts_dtype = published_dtypes(config)
    return ModelShape(
        name=name or str(config.get("_name_or_path") or config.get("model_type") or ""),
        hidden=hidden,
        vocab=_whole(config, _VOCAB),
        groups=groups,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        max_context=_whole(config, _CONTEXT, default=0),
        dtype=dtype,
        experts_dtype=None if experts_dtype == dtype else experts_dtype,
        other_parameters=_beside_the_matrices(config, family, hidden, groups),
        source="config.json",
    )


def attention_kinds(config: Config, layers: int) -> list[str]:
    """full, sliding, chunked or linear for each layer."""
    stated = config.get("layer_types")
    if stated is not None:
        if not isinstance(stated, list) or [kind in _LAYER_TYPES for kind in stated] != [True] * layers:
            raise UnsupportedModel(
                field="layer_types", value=stated, why=f"not {layers} entries of {', '.join(_LAYER_TYPES)}",
                remedy="one entry per layer, of these kinds",
            )  # fmt: skip
        return [_LAYER_TYPES[kind] for kind in stated]
    if config.get("attention_chunk_size"):
        # Llama 4: layers without RoPE see everything, the others their own chunk: at most that many tokens, half of it
        # on average. It is counted as a window, which is its most.
        rotary = config.get("no_rope_layers") or [
            (layer + 1) % int(config.get("no_rope_layer_interval", 4)) for layer in range(layers)
        ]
        return [_CHUNKED if uses_rope else _FULL for uses_rope in rotary]
    if config.get("linear_num_value_heads"):
        every = int(config.get("full_attention_interval", 4))
        return [_LINEAR if (layer + 1) % every else _FULL for layer in range(layers)]
    if not _whole(config, ("sliding_window",), default=0) or config.get("use_sliding_window") is False:
        return [_FULL] * layers
    pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
    if isinstance(pattern, int):
        return [_SLIDING if (layer + 1) % pattern else _FULL for layer in range(layers)]
    if config.get("use_sliding_window") and config.get("max_window_layers") is not None:
        return [_SLIDING if layer >= int(config["max_window_layers"]) else _FULL for layer in range(layers)]
    return [_SLIDING] * layers


def sparse_layers(config: Config, layers: int) -> list[bool]:
    """Whether each layer has a mixture of experts instead of a dense MLP."""
    if not _whole(config, _EXPERTS, default=0):
        return [False] * layers
    stated = config.get("mlp_layer_types")
    if stated:
        return [kind == "sparse" for kind in stated]
    dense = set(config.get("mlp_only_layers") or ())
    named = config.get("moe_layers")
    first = int(config.get("first_k_dense_replace") or 0)
    frequency = config.get("moe_layer_freq") or 1
    if isinstance(frequency, list):
        return [bool(flag) for flag in frequency]
    # A fraction of a layer would be every 0th.
    frequency = max(1, int(frequency))
    step = max(1, int(config.get("decoder_sparse_step") or config.get("interleave_moe_layer_step") or 1))
    return [
        (layer in named) if named
        else layer not in dense and layer >= first and layer % frequency == 0 and (layer + 1) % step == 0
        for layer in range(layers)
    ]  # fmt: skip


def _attention(config: Config, hidden: int, kind: str) -> Attention:
    heads = _whole(config, _HEADS)
    kv_heads = _whole(config, _KV_HEADS, default=heads)
    if kind == _LINEAR:
        linear = Linear(
            key_heads=_whole(config, ("linear_num_key_heads",)),
            value_heads=_whole(config, ("linear_num_value_heads",)),
            key_dim=_whole(config, ("linear_key_head_dim",)), value_dim=_whole(config, ("linear_value_head_dim",)),
            conv_width=_whole(config, ("linear_conv_kernel_dim",), default=4),
        )  # fmt: skip
        return Attention(
            heads=linear.value_heads, kv_heads=linear.key_heads, head_dim=linear.key_dim, linear=linear,
            value_dim=linear.value_dim, state_elements=linear.state_elements, gated_output=True,
        )  # fmt: skip
    if config.get("kv_lora_rank"):
        latent = Latent(
            kv_rank=_whole(config, ("kv_lora_rank",)), rope_dim=_whole(config, ("qk_rope_head_dim",)),
            nope_dim=_whole(config, ("qk_nope_head_dim",)), value_dim=_whole(config, ("v_head_dim",)),
            query_rank=_whole(config, ("q_lora_rank",), default=0) or None,
        )  # fmt: skip
        return Attention(
            heads=heads, kv_heads=heads, head_dim=latent.nope_dim + latent.rope_dim, latent=latent,
            indexer=_indexer(config),
        )  # fmt: skip
    head_dim = _whole(config, _HEAD_DIM, default=0)
    if not head_dim:
        if hidden % heads:
            raise UnsupportedModel(
                field="head_dim", value=None, why=f"hidden width {hidden} is not a multiple of {heads} heads",
                remedy="state head_dim in config.json",
            )  # fmt: skip
        head_dim = hidden // heads
    if not kv_heads or heads % kv_heads:
        raise UnsupportedModel(
            field="num_key_value_heads", value=kv_heads, why=f"{heads} query heads cannot share {kv_heads}",
            remedy="a divisor of num_attention_heads",
        )  # fmt: skip
    bounded = {_SLIDING: "sliding_window", _CHUNKED: "attention_chunk_size"}.get(kind)
    window = _whole(config, (bounded,)) if bounded else None
    value_dim = _whole(config, ("v_head_dim",), default=0) or None
    return Attention(
        heads=heads, kv_heads=kv_heads, head_dim=head_dim, window=window, gated_output=_is(config, "attn_output_gate"),
        value_dim=None if value_dim == head_dim else value_dim, indexer=_indexer(config),
    )  # fmt: skip


def _indexer(config: Config) -> Indexer | None:
    if not config.get("index_topk"):
        return None
    return Indexer(
        heads=_whole(config, ("index_n_heads",)), head_dim=_whole(config, ("index_head_dim",)),
        top_k=_whole(config, ("index_topk",)),
    )  # fmt: skip


def _feed_forward(config: Config, family: Family, hidden: int, sparse: bool) -> FeedForward:
    if not sparse:
        four = 4 * hidden if config.get("model_type") in _FOUR_TIMES_WIDE else None
        return FeedForward(intermediate=_whole(config, _INTERMEDIATE, default=four), gated=family.gated_mlp)
    width = _whole(config, _EXPERT_WIDTH, default=0) or _whole(config, _INTERMEDIATE)
    shared = _whole(config, _SHARED_WIDTH, default=0)
    count = _whole(config, ("n_shared_experts", "num_shared_experts"), default=0)
    return FeedForward(
        intermediate=width, gated=family.gated_mlp, experts=_whole(config, _EXPERTS),
        experts_per_token=_whole(config, _CHOSEN), shared_intermediate=shared or count * width,
        expert_bias=family.expert_bias,
    )  # fmt: skip


def _beside_the_matrices(config: Config, family: Family, hidden: int, groups: tuple[LayerGroup, ...]) -> int:
    """Norms, biases, learned positions, gates of one column."""
    norm = hidden * (2 if family.norm_bias else 1)
    count = norm * (2 if family.embedding_norm else 1)  # the last norm
    if family.learned_positions is not None:
        count += hidden * (_whole(config, _CONTEXT) + family.learned_positions)
    if _is(config, family.head_bias):
        count += _whole(config, _VOCAB)
    for group in groups:
        layer = family.layer_norms * norm + _beside_attention(config, family, hidden, group.attention)
        feed_forward = group.feed_forward
        if feed_forward.experts:
            layer += feed_forward.experts * family.router_bias + hidden * family.shared_gate
        elif _is(config, family.mlp_bias):
            layer += (feed_forward.matrices - 1) * feed_forward.intermediate + hidden
        count += group.count * layer
    return count


def _beside_attention(config: Config, family: Family, hidden: int, attention: Attention) -> int:
    if attention.linear is not None:
        return 2 * attention.linear.value_heads + attention.linear.value_dim  # decay, its offset, output norm
    index = 2 * attention.indexer.head_dim if attention.indexer is not None else 0
    qkv_bias, output_bias = _is(config, family.qkv_bias), _is(config, family.output_bias)
    if attention.latent is not None:
        mla = attention.latent
        bias = (mla.query_rank or 0) + mla.kv_rank + mla.rope_dim if qkv_bias else 0
        return (mla.query_rank or 0) + mla.kv_rank + bias + hidden * output_bias + index
    queries, keys = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    count = index + hidden * output_bias + attention.heads * family.sinks
    if qkv_bias:
        count += queries * (2 if attention.gated_output else 1) + keys + attention.kv_heads * attention.value_width
    if family.qk_norm is not None:
        count += 2 * attention.head_dim if family.qk_norm == "head" else queries + keys
    return count


def _flat(config: Config) -> dict[str, Any]:
    """The language model's own part of a multimodal config."""
    for key in _NESTED:
        inner = config.get(key)
        if isinstance(inner, Mapping):
            outer = {name: config[name] for name in _INHERITED if config.get(name) is not None}
            return _flat({"model_type": config.get("model_type"), **outer, **_stated(inner)})
    return _stated(config)


def _stated(config: Config) -> dict[str, Any]:
    """Without the keys that are null: they mean the default."""
    return {key: value for key, value in config.items() if value is not None}


def _refuse_what_is_not_modelled(config: Config) -> None:
    strange = [(key, what) for key, what in _NOT_MODELLED.items() if config.get(key)]
    strange += [
        (key, what) for key, (plain, what) in _PLAIN_ONLY.items() if any(kind != plain for kind in config.get(key, ()))
    ]
    for key, what in strange:
        raise UnsupportedModel(
            field=key, value=config[key], why=f"the model has {what}, whose work is not modelled",
            remedy="a model of full, sliding, latent or Gated DeltaNet attention with dense MLPs or experts",
        )  # fmt: skip
    if config.get("word_embed_proj_dim", config.get("hidden_size")) != config.get("hidden_size"):
        raise UnsupportedModel(
            field="word_embed_proj_dim", value=config["word_embed_proj_dim"],
            why="embeddings narrower than the hidden state are not modelled", remedy="a larger OPT",
        )  # fmt: skip


def _is(config: Config, flag: Flag) -> bool:
    return bool(config.get(flag, False)) if isinstance(flag, str) else flag


def _whole(config: Config, keys: tuple[str, ...], default: int | None = None) -> int:
    """The first of `keys` that is there, as a count. A default stands in for a key that is not."""
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value % 1 != 0:
            raise UnsupportedModel(field=key, value=value, why="not a whole number", remedy="a count, 0 or more")
        if value > 0 or default is not None:
            return int(value)
        raise UnsupportedModel(field=key, value=value, why="must be more than 0", remedy="a count, 1 or more")
    if default is not None:
        return default
    others = f" (or {', '.join(keys[1:])})" if len(keys) > 1 else ""
    raise UnsupportedModel(
        field=keys[0], value=None, why="config.json does not state it, and it has no default",
        remedy=f"add {keys[0]}{others} to config.json",
    )  # fmt: skip
