"""What each `dtype:` of a deployment stores and computes. Imports nothing heavy: sizes are asked before anything loads.

Embeddings, norms, biases, routers, activations and KV have the compute type; what is packed is the matrices of
products, the head among them. O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from penstock.errors import UnsupportedModel

GROUP: Final = 32
"""Inputs that share a scale in int4."""


@dataclass(frozen=True, slots=True)
class Format:
    """`compute`: float32 or bfloat16. `weight_bytes` of one weight; `output_bytes`: scales and such of one output."""

    compute: str
    weight_bytes: float
    output_bytes: int
    device: str = ""
    """The one kind of device that has it; none: all."""
    exact: bool = False
    """Its products are those of the compute type to the bit: a tied head may stay one tensor with the embedding."""

    @property
    def narrow(self) -> bool:
        """Narrower than the compute type: a tied head becomes a matrix of its own."""
        return self.weight_bytes < COMPUTE_BYTES[self.compute] and not self.exact


COMPUTE_BYTES: Final = {"float32": 4, "bfloat16": 2}

FORMATS: Final = {
    "float32": Format("float32", 4, 0),
    "float32_compressed": Format("float32", 3.5, 2, "cpu", exact=True),
    "bfloat16": Format("bfloat16", 2, 0),
    "int8": Format("float32", 1, 8, "cpu"),
    "int8_weights": Format("float32", 1, 4, "cpu"),
    "int4": Format("float32", 0.5 + 2 / GROUP, 0, "cpu"),
    "fp8": Format("bfloat16", 1, 4, "cuda"),
}
"""By name.

float32_compressed: float32 without loss, its exponent in four bits; what does not fit, some one weight in ten thousand,
is kept whole and not counted here. A matrix of bfloat16's values takes what it takes in bfloat16.

int8: a scale for each output, activations in int8 with a scale for each row, exact sums. int8_weights: the same
weights, activations and sums in float32. int4: groups of 32 weights with a scale in bfloat16, activations in int8 in
the same groups; a matrix whose inputs are no multiple of 32 becomes int8. fp8: see fp8.py.
"""


def format_of(dtype: str) -> Format:
    """Raises UnsupportedModel for a name that is not in FORMATS."""
    if dtype not in FORMATS:
        raise UnsupportedModel(
            field="dtype", value=dtype, why="the engine does not compute in it", remedy=" or ".join(FORMATS)
        )
    return FORMATS[dtype]


def matrix_bytes(dtype: str, outputs: int, inputs: int) -> int:
    """What a matrix [O, I] takes in `dtype`, the padding of its last panel left out."""
    if dtype == "int4" and inputs % GROUP:
        dtype = "int8"
    found = FORMATS[dtype]
    return int(outputs * (inputs * found.weight_bytes + found.output_bytes))
