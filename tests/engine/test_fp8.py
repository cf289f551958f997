"""8-bit floats: what a matrix keeps, what rounding rows gives, and who is told that they cannot have them."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install 'penstock[dev]'")

from penstock.engine.loader import load_model
from penstock.engine.weights.fp8 import LARGEST, Fp8Weight, fp8, quantize_rows
from penstock.errors import UnsupportedModel

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random(rows, columns, seed):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_a_matrix_has_a_scale_for_each_output_and_keeps_three_bits_of_each_number():
    weight = random(32, 64, 1) * torch.logspace(-6, 6, 32)[:, None]
    packed = Fp8Weight(weight.to(torch.bfloat16))
    assert packed.shape == (32, 64)
    assert packed.nbytes == 32 * 64 + 32 * 4
    near = weight.to(torch.bfloat16).float()
    # Half a unit in the last place of three bits, and for the smallest a step of the subnormal numbers.
    bound = near.abs() / 16 + near.abs().amax(1, keepdim=True) / LARGEST * 2**-10
    assert ((packed.plain() - near).abs() <= bound * 1.01).all()
    assert Fp8Weight(torch.zeros(16, 16)).plain().abs().max() == 0


def test_rows_are_rounded_each_by_its_own_largest():
    x = (random(5, 100, 2) * torch.tensor([1e-4, 1.0, 30.0, 1e5, 0.0])[:, None]).to(torch.bfloat16)
    rounded, scales = quantize_rows(x.to(DEVICE))
    assert (rounded.dtype, rounded.shape, scales.shape) == (torch.float8_e4m3fn, (5, 100), (5, 1))
    back, near = rounded.float().cpu() * scales.cpu(), x.float()
    bound = near.abs() / 16 + near.abs().amax(1, keepdim=True) / LARGEST * 2**-10
    fine = (back - near).abs() <= bound * 1.01
    if DEVICE.type == "cpu":
        # Triton's interpreter loses the carry of a mantissa that is rounded up to the next power of two.
        fine |= torch.frexp(near / scales.cpu()).mantissa.abs() > 0.96
    assert fine.all()
    assert torch.isfinite(back).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_product_is_that_of_the_rounded_operands():
    x, weight = random(33, 256, 3).to(torch.bfloat16).cuda(), random(96, 256, 4).to(torch.bfloat16).cuda()
    bias = random(1, 96, 5)[0].to(torch.bfloat16).cuda()
    packed = fp8(DEVICE)(weight)
    rounded, scales = quantize_rows(x)
    wanted = (rounded.double() * scales.double()) @ packed.plain().double().t() + bias.double()
    torch.testing.assert_close(packed.product(x, bias).double(), wanted, rtol=2e-2, atol=5e-2)


def test_a_cpu_is_told_what_it_can_have(checkpoint):
    with pytest.raises(UnsupportedModel, match="CUDA devices only") as caught:
        load_model(checkpoint("llama"), dtype="fp8")
    assert "int8" in caught.value.remedy


def test_an_older_gpu_is_told_what_it_can_have(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(UnsupportedModel, match=r"compute capability 8\.0, and 8\.9 is needed"):
        fp8(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    odd = torch.zeros(7, 16)
    assert fp8(torch.device("cuda"))(odd) is odd
