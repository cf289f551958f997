"""The operations in plain torch: correct on any device and the meaning the C kernels are tested against.

Slower where it matters: attention gathers each sequence's KV before it computes, one sequence at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from penstock.engine.ops.kernels import Heads, QkNorm, Segments
from penstock.engine.ops.portable_shared import SharedParts
from penstock.engine.weights import Matrix


class PortableKernels:
    """See `Kernels` for what each does."""

    name = "portable"

    def linear(self, x: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
        if not isinstance(weight, Tensor):
            return weight.product(x, bias)
        return functional.linear(x, weight, bias)

    def add_rms_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        if delta is not None:
            x += delta
        return _rms_norm(x, weight, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def rotate_and_store(
        self,
        qkv: Tensor,
        heads: Heads,
        angles: tuple[Tensor, Tensor] | None,
        norm: QkNorm | None,
        pool: Tensor,
        layer: int,
        kv_index: Tensor,
    ) -> None:
        rows = qkv.view(qkv.shape[0], heads.query + 2 * heads.kv, heads.width)
        q, k, v = torch.split(rows, [heads.query, heads.kv, heads.kv], dim=1)
        if norm is not None:
            q.copy_(_rms_norm(q, norm.query, norm.eps))
            k.copy_(_rms_norm(k, norm.key, norm.eps))
        if angles is not None:
            cos, sin = (a[:, None].to(qkv.dtype) for a in angles)
            turned = rows[:, : heads.query + heads.kv, : 2 * cos.shape[-1]]
            left, right = turned.chunk(2, dim=-1)
            turned.copy_(torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1))
        block_tokens = pool.shape[4]
        block, offset = kv_index // block_tokens, kv_index % block_tokens
        pool[:, layer, 0][block, :, offset] = k
        pool[:, layer, 1][block, :, offset] = v

    def attention(
        self,
        qkv: Tensor,
        heads: Heads,
        pool: Tensor,
        layer: int,
        segments: Segments,
        scale: float,
        window: int | None,
        softcap: float | None = None,
    ) -> Tensor:
        block_tokens = pool.shape[4]
        q_TNH = qkv[:, : heads.query * heads.width].view(-1, heads.query, heads.width)
        out = torch.empty_like(q_TNH, memory_format=torch.contiguous_format)
        bounds = segments.first_row.tolist()
        cut = SharedParts(q_TNH, pool[:, layer], segments, scale, softcap) if window is None else None
        for s, (length, row) in enumerate(zip(segments.lengths.tolist(), segments.table_rows.tolist(), strict=True)):
            first, last = bounds[s], bounds[s + 1]
            rows = last - first
            if cut is not None and s in cut:
                out[first] = cut.attend(s, length, row)
                continue
            # The earliest position any of these rows sees; blocks before it are not touched.
            start = max(0, length - rows - window + 1) // block_tokens if window else 0
            blocks = segments.tables[row, start : -(-length // block_tokens)].to(pool.device, torch.int64)
            kv = pool[blocks, layer].permute(1, 2, 0, 3, 4).reshape(2, heads.kv, -1, heads.width)
            kv = kv[:, :, : length - start * block_tokens]
            position = torch.arange(length - rows, length, device=pool.device)[:, None]
            seen = torch.arange(start * block_tokens, length, device=pool.device)[None]
            mask = seen <= position
            if window:
                mask &= seen > position - window
            if softcap is not None:
                out[first:last] = _capped(q_TNH[first:last], kv, mask, scale, softcap)
                continue
            out[first:last] = functional.scaled_dot_product_attention(
                q_TNH[first:last].transpose(0, 1)[None],
                kv[0][None],
                kv[1][None],
                attn_mask=mask,
                scale=scale,
                enable_gqa=heads.query != heads.kv,
            )[0].transpose(0, 1)
        return out.view(-1, heads.query * heads.width)


def _capped(q_TNH: Tensor, kv: Tensor, mask: Tensor, scale: float, softcap: float) -> Tensor:
    """Attention of one sequence's rows [T, N, H] over its keys and values [2, K, tokens, H], written out."""
    group = q_TNH.shape[1] // kv.shape[1]
    keys, values = kv.float().repeat_interleave(group, dim=1)
    scores = q_TNH.float().transpose(0, 1) @ keys.transpose(1, 2) * scale
    scores = (torch.tanh(scores / softcap) * softcap).masked_fill(~mask, float("-inf"))
    attended: Tensor = torch.softmax(scores, dim=-1) @ values
    return attended.transpose(0, 1).to(q_TNH.dtype)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)
