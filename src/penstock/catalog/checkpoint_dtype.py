"""In which types a checkpoint's weights are published, from the quantization_config of its config.json."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final, get_args

from penstock.catalog.shape import Dtype
from penstock.errors import UnsupportedModel

Config = Mapping[str, Any]

_PLAIN: Final[Mapping[str, Dtype]] = {
    "float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16",
    "fp16": "float16", "half": "float16", "float": "float32",
}  # fmt: skip
_BY_BITS: Final[Mapping[tuple[str, int], Dtype]] = {
    ("int", 4): "int4", ("int", 8): "int8", ("float", 8): "fp8", ("float", 4): "nvfp4",
}  # fmt: skip
_BY_METHOD: Final[Mapping[str, Dtype]] = {
    "fp8": "fp8", "fbgemm_fp8": "fp8", "mxfp4": "mxfp4", "nvfp4": "nvfp4", "awq": "int4", "gptq": "int4",
    "fp8_pb_wo": "fp8_block", "w4a8_awq": "int4", "mxfp8": "fp8_block", "int8": "int8", "int4": "int4",
}  # fmt: skip


def published_dtypes(config: Config) -> tuple[Dtype, Dtype]:
    """Types of the dense weights and of the routed experts. bfloat16 where nothing is said.

    Raises: UnsupportedModel: a quantisation or a type that is not known.

    >>> published_dtypes({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}})
    ('fp8_block', 'fp8_block')
    """
    plain = _plain(config.get("torch_dtype") or config.get("dtype") or "bfloat16")
    quantization = config.get("quantization_config")
    if not quantization:
        return plain, plain
    narrow = _quantised(quantization)
    kept = [
        *(quantization.get("modules_to_not_convert") or ()),
        *(quantization.get("ignore") or quantization.get("exclude_modules") or ()),
    ]
    # Whether attention is spared tells the checkpoints that quantise their experts alone from those that quantise all.
    return (plain if _spares(kept, "model.layers.7.self_attn.o_proj") else narrow), narrow


def _plain(name: object) -> Dtype:
    short = str(name).removeprefix("torch.")
    if short not in _PLAIN:
        raise UnsupportedModel(
            field="torch_dtype", value=name, why="no such type is known", remedy=", ".join(sorted(_PLAIN))
        )
    return _PLAIN[short]


def _quantised(config: Config) -> Dtype:
    method = str(config.get("quant_method", "")).lower()
    if method in ("compressed-tensors", "compressed_tensors", "modelopt", ""):
        algorithm = str(config.get("quant_algo", config.get("format", ""))).lower()
        if "nvfp4" in algorithm:
            return "nvfp4"
        for group in (config.get("config_groups") or {}).values():
            weights = group.get("weights") or {}
            found = _BY_BITS.get((str(weights.get("type", "int")), int(weights.get("num_bits", 0))))
            if found is not None:
                return "fp8_block" if found == "fp8" and weights.get("strategy") == "block" else found
        method = algorithm
    if method == "fp8" and config.get("weight_block_size"):
        return "fp8_block"
    if method == "bitsandbytes":
        return "int4" if config.get("load_in_4bit") else "int8"
    if method in ("gptq", "awq") and config.get("bits") == 8:
        return "int8"
    if method in _BY_METHOD:
        return _BY_METHOD[method]
    raise UnsupportedModel(
        field="quantization_config.quant_method", value=config.get("quant_method"), why="not a quantisation known here",
        remedy=f"take it out of config.json and state the types yourself: {', '.join(get_args(Dtype))}",
    )  # fmt: skip


def _spares(patterns: Iterable[str], module: str) -> bool:
    """Whether a list of modules that stay as they are names `module`: by itself or a parent, as a glob or as re:..."""
    return any(
        re.match(pattern[3:], module) is not None
        if pattern.startswith("re:")
        else fnmatchcase(module, pattern) or fnmatchcase(module, pattern.rstrip("*.") + ".*")
        for pattern in patterns
    )
