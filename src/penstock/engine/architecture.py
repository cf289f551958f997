"""What config.json says, in one vocabulary: every family's spelling is read here and nowhere else.

`read_architecture` turns a checkpoint's config.json into an `Architecture`: shapes, norms, biases, windows, RoPE,
experts. It imports no torch, so that a checkpoint can be judged (does it fit, is it supported) before anything heavy
is loaded. A family is one function in `FAMILIES`; the name it is found by is `architectures[0]`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from penstock.errors import UnsupportedModel

Config = Mapping[str, Any]

ROPE_TYPES: Final = ("default", "linear", "dynamic", "llama3", "yarn")
ACTIVATIONS: Final = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu")


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding: the type, its base, and the type's own parameters as the checkpoint names them."""

    type: str
    theta: float
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: `sparse_layers[i]` says whether layer i has one instead of a dense MLP."""

    count: int
    per_token: int
    intermediate: int
    normalize: bool
    """Whether the weights of the chosen experts are scaled to sum to 1."""
    sparse_layers: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One model's shape. Widths in elements, `windows[i]` in tokens (None: layer i sees everything before it)."""

    name: str
    """architectures[0], e.g. LlamaForCausalLM."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    activation: str
    tied_embeddings: bool
    windows: tuple[int | None, ...]
    attention_scales: tuple[float, ...]
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope: Rope | None = None
    experts: Experts | None = None

    @property
    def max_sequence_tokens(self) -> int:
        """Tokens the model is made for: max_positions, stretched where RoPE scaling is what stretches it.

        Checkpoints with linear, dynamic or yarn scaling keep the original length in config.json more often than not;
        llama3 ones hold the stretched one.
        """
        if self.rope is None or self.rope.type not in ("linear", "dynamic", "yarn"):
            return self.max_positions
        original = self.rope.parameters.get("original_max_position_embeddings", self.max_positions)
        return max(self.max_positions, int(original * self.rope.parameters["factor"]))

    @property
    def kv_elements_per_token(self) -> int:
        """Keys and values of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def read_architecture(path: Path | str) -> Architecture:
    """The architecture of the checkpoint in directory `path`.

    Raises: UnsupportedModel: no config.json, an architecture or an option that is not implemented, or a shape that
    cannot be.
    """
    config = read_config(path)
    names = config.get("architectures") or []
    name = names[0] if names else None
    if name not in FAMILIES:
        raise UnsupportedModel(
            field="architectures[0]",
            value=name,
            why="this engine has no implementation of it",
            remedy="a checkpoint of one of " + ", ".join(sorted(FAMILIES)),
        )
    if config.get("quantization_config"):
        raise UnsupportedModel(
            field="quantization_config",
            value=config["quantization_config"].get("quant_method"),
            why="quantized weights are not implemented",
            remedy="the checkpoint's unquantized version (float32, float16 or bfloat16)",
        )
    architecture = FAMILIES[name](name, config)
    _check(architecture)
    return architecture


def read_config(path: Path | str) -> Config:
    """config.json of the checkpoint in directory `path`. Raises UnsupportedModel when there is none to read."""
    file = Path(path) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel(
            field="model",
            value=str(path),
            why=f"config.json cannot be read ({error})",
            remedy="the directory of a Hugging Face checkpoint: config.json, *.safetensors, tokenizer.json",
        ) from None
    if not isinstance(config, dict):
        raise UnsupportedModel(
            field="config.json", value=type(config).__name__, why="it must be an object", remedy="the original file"
        )
    return config


def _llama(name: str, config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", False))
    return _decoder(
        name,
        config,
        norm_eps=1e-6,
        max_positions=2048,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
    )


def _mistral(name: str, config: Config) -> Architecture:
    # The default of a missing key is 4096 in Mistral's config class; checkpoints without a window say null.
    window = config.get("sliding_window", 4096)
    return _decoder(name, config, norm_eps=1e-6, max_positions=131072, window=window, kv_heads=8)


def _qwen2(name: str, config: Config) -> Architecture:
    return _decoder(name, config, norm_eps=1e-6, max_positions=32768, windows=_qwen_windows(config), qkv_bias=True)


def _qwen3(name: str, config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", False))
    return _decoder(
        name,
        config,
        norm_eps=1e-6,
        max_positions=32768,
        head_dim=128,
        windows=_qwen_windows(config),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
    )


def _mixtral(name: str, config: Config) -> Architecture:
    layers = _size(config, "num_hidden_layers", 32)
    experts = Experts(
        count=_size(config, "num_local_experts", 8),
        per_token=_size(config, "num_experts_per_tok", 2),
        intermediate=_size(config, "intermediate_size", 14336),
        normalize=True,
        sparse_layers=(True,) * layers,
    )
    return _decoder(
        name,
        config,
        norm_eps=1e-5,
        max_positions=131072,
        window=config.get("sliding_window"),
        theta=1e6,
        kv_heads=8,
        experts=experts,
    )


def _qwen3_moe(name: str, config: Config) -> Architecture:
    layers = _size(config, "num_hidden_layers", 24)
    step = _size(config, "decoder_sparse_step", 1)
    dense = set(config.get("mlp_only_layers") or ())
    count = config.get("num_experts", config.get("num_local_experts", 128))
    experts = Experts(
        count=count,
        per_token=_size(config, "num_experts_per_tok", 8),
        intermediate=_size(config, "moe_intermediate_size", 768),
        normalize=bool(config.get("norm_topk_prob", False)),
        sparse_layers=tuple(i not in dense and count > 0 and (i + 1) % step == 0 for i in range(layers)),
    )
    bias = bool(config.get("attention_bias", False))
    return _decoder(
        name,
        config,
        norm_eps=1e-6,
        max_positions=32768,
        window=config.get("sliding_window") if config.get("use_sliding_window") else None,
        kv_heads=4,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        experts=experts,
    )


def _gpt2(name: str, config: Config) -> Architecture:
    for option in ("add_cross_attention",):
        if config.get(option):
            raise UnsupportedModel(
                field=option, value=True, why="cross-attention is not implemented", remedy="a decoder-only checkpoint"
            )
    layers, hidden, heads = _size(config, "n_layer", 12), _size(config, "n_embd", 768), _size(config, "n_head", 12)
    head_dim = hidden // heads
    scale = head_dim**-0.5 if config.get("scale_attn_weights", True) else 1.0
    by_layer = config.get("scale_attn_by_inverse_layer_idx", False)
    return Architecture(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        intermediate=config.get("n_inner") or 4 * hidden,
        vocab_size=_size(config, "vocab_size", 50257),
        max_positions=_size(config, "n_positions", 1024),
        norm_eps=float(config.get("layer_norm_epsilon", 1e-5)),
        activation=config.get("activation_function", "gelu_new"),
        tied_embeddings=bool(config.get("tie_word_embeddings", True)),
        windows=(None,) * layers,
        attention_scales=tuple(scale / (i + 1) if by_layer else scale for i in range(layers)),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
    )


FAMILIES: Final[dict[str, Callable[[str, Config], Architecture]]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "MixtralForCausalLM": _mixtral,
    "Qwen3MoeForCausalLM": _qwen3_moe,
    "GPT2LMHeadModel": _gpt2,
}
"""By architectures[0]. The implementation of each is in engine/models/."""


def _decoder(
    name: str,
    config: Config,
    *,
    norm_eps: float,
    max_positions: int,
    theta: float = 10_000.0,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    window: int | None = None,
    windows: tuple[int | None, ...] | None = None,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    experts: Experts | None = None,
) -> Architecture:
    """What all but GPT-2 share; the keyword arguments are the family's defaults for keys its config.json leaves out."""
    layers = _size(config, "num_hidden_layers", 32)
    hidden = _size(config, "hidden_size", 4096)
    heads = _size(config, "num_attention_heads", 32)
    width = config.get("head_dim") or head_dim or hidden // heads
    positions = _size(config, "max_position_embeddings", max_positions)
    return Architecture(
        name=name,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(config, heads, kv_heads),
        head_dim=width,
        intermediate=_size(config, "intermediate_size", 11008),
        vocab_size=_size(config, "vocab_size", 32000),
        max_positions=positions,
        norm_eps=float(config.get("rms_norm_eps", norm_eps)),
        activation=config.get("hidden_act", "silu"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        windows=windows if windows is not None else (window or None,) * layers,
        attention_scales=(width**-0.5,) * layers,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        rope=_rope(config, theta, positions),
        experts=experts,
    )


def _kv_heads(config: Config, heads: int, default: int | None) -> int:
    if "num_key_value_heads" in config:
        # null means as many as query heads, in every family.
        return config["num_key_value_heads"] or heads
    return default or heads


def _qwen_windows(config: Config) -> tuple[int | None, ...]:
    """Qwen2 and Qwen3: layers from max_window_layers on have the window, unless layer_types says it one by one."""
    layers = _size(config, "num_hidden_layers", 32)
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    kinds = config.get("layer_types")
    if kinds is None:
        first = config.get("max_window_layers", 28)
        return tuple(window if window and i >= first else None for i in range(layers))
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown or len(kinds) != layers:
        raise UnsupportedModel(
            field="layer_types",
            value=kinds,
            why=f"expected {layers} entries, each full_attention or sliding_attention",
            remedy="the checkpoint's original config.json",
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _rope(config: Config, theta: float, max_positions: int) -> Rope:
    """Both spellings: rope_parameters (transformers 5) and rope_scaling beside rope_theta (before)."""
    found = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    kind = found.pop("rope_type", None) or found.pop("type", None) or "default"
    found.pop("type", None)
    theta = float(found.pop("rope_theta", None) or config.get("rope_theta") or theta)
    if kind not in ROPE_TYPES:
        raise UnsupportedModel(
            field="rope_parameters.rope_type",
            value=kind,
            why="this RoPE scaling is not implemented",
            remedy="one of " + ", ".join(ROPE_TYPES),
        )
    if (found.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UnsupportedModel(
            field="partial_rotary_factor",
            value=found.get("partial_rotary_factor", config.get("partial_rotary_factor")),
            why="no family implemented here rotates a part of a head",
            remedy="1.0, or a supported checkpoint",
        )
    needed = {
        "linear": ("factor",),
        "dynamic": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    }
    for key in needed.get(kind, ()):
        if key not in found:
            raise UnsupportedModel(
                field=f"rope_parameters.{key}",
                value=None,
                why=f"the {kind} scaling needs it",
                remedy="the checkpoint's original config.json",
            )
    if kind in ("llama3", "yarn"):
        original = config.get("original_max_position_embeddings")
        if original is not None:
            found["original_max_position_embeddings"] = original
        else:
            found.setdefault("original_max_position_embeddings", max_positions)
    if kind == "yarn" and found.get("factor") is None:
        found["factor"] = max_positions / found["original_max_position_embeddings"]
    return Rope(kind, theta, found)


def _size(config: Config, key: str, default: int) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedModel(
            field=key, value=value, why="it must be a positive whole number", remedy="the original config.json"
        )
    return value


def _check(architecture: Architecture) -> None:
    """Shapes that cannot be, said before a tensor is read."""
    if architecture.heads % architecture.kv_heads:
        raise UnsupportedModel(
            field="num_key_value_heads",
            value=architecture.kv_heads,
            why=f"it must divide num_attention_heads ({architecture.heads})",
            remedy="the original config.json",
        )
    if architecture.rope is not None and architecture.head_dim % 2:
        raise UnsupportedModel(
            field="head_dim", value=architecture.head_dim, why="RoPE rotates pairs", remedy="an even width"
        )
    if architecture.activation not in ACTIVATIONS:
        raise UnsupportedModel(
            field="hidden_act",
            value=architecture.activation,
            why="this activation is not implemented",
            remedy="one of " + ", ".join(ACTIVATIONS),
        )
    experts = architecture.experts
    if experts is not None and experts.per_token > experts.count:
        raise UnsupportedModel(
            field="num_experts_per_tok",
            value=experts.per_token,
            why=f"there are {experts.count} experts",
            remedy="the original config.json",
        )
