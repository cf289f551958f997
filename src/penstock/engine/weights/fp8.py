"""8-bit floats (E4M3) on GPUs whose matrix units take them: half the weights' memory, up to twice the products' rate.

Weights have one scale per output channel, made once; activations one per row, made in each product by a kernel that
reads the row once from memory and once from cache. What is no product, such as embedding and norms, stays as it is.
Source: FP8 Formats for Deep Learning, Micikevicius et al., 2022.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from penstock.engine.weights import Pack
from penstock.errors import UnsupportedModel

LARGEST: Final = 448.0
"""The largest number of E4M3."""
CAPABILITY: Final = (8, 9)


class Fp8Weight:
    """A Weight. `product` takes and gives bfloat16."""

    def __init__(self, weight: Tensor) -> None:
        """`weight` [O, I], any float type; both sides multiples of 16."""
        wide = weight.float()
        scales = (wide.abs().amax(dim=1, keepdim=True) / LARGEST).clamp_min(1e-12)
        self._weight = (wide / scales).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        self._scales = scales.view(1, -1)

    @property
    def shape(self) -> tuple[int, int]:
        return self._weight.shape[0], self._weight.shape[1]

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes + self._scales.nbytes

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rounded, scales = quantize_rows(x)
        return torch._scaled_mm(
            rounded, self._weight.t(), scale_a=scales, scale_b=self._scales, bias=bias, out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )  # fmt: skip

    def plain(self) -> Tensor:
        """What it stands for, float32 [O, I]."""
        return self._weight.float() * self._scales.view(-1, 1)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, I] as E4M3, and the scales float32 [T, 1] that give it back."""
    from penstock.engine.ops.triton import rows

    count, width = x.shape
    out = torch.empty(count, width, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(count, 1, dtype=torch.float32, device=x.device)
    if count:
        rows.quantize_rows[(count,)](x, out, scales, WIDTH=width, BLOCK=4096, LARGEST=LARGEST, num_warps=8)
    return out, scales


def fp8(device: torch.device) -> Pack:
    """Makes matrices Fp8Weights, but for those whose sides are no multiples of 16.

    Raises UnsupportedModel: the device cannot multiply 8-bit floats.
    """
    why = _unavailable(device)
    if why is not None:
        raise UnsupportedModel(
            field="model.dtype", value="fp8", why=why, remedy="model.dtype: bfloat16, or on a CPU int8"
        )
    return lambda weight: weight if weight.shape[0] % 16 or weight.shape[1] % 16 else Fp8Weight(weight)


def _unavailable(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"8-bit floats are multiplied on CUDA devices only, and this is {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        return f"this GPU has compute capability {capability[0]}.{capability[1]}, and 8.9 is needed"
    return None
