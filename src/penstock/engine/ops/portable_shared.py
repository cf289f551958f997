"""Attention of sequences with a common prefix in plain torch: the prefix once for a whole group, then each one's rest.

Attention over some of the keys is an output and the logarithm of the sum of its weights; two such parts are one again
when each is weighed by that sum. Exact but for rounding. Source: Hydragen, Juravsky et al., 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.engine.ops.kernels import Segments

Part = tuple[Tensor, Tensor]
"""Output [R, N, H] and log-sum-exp of the scores [R, N], float32."""


class SharedParts:
    """The prefix parts of all groups of a step at one layer, and what completes them."""

    def __init__(self, q_TNH: Tensor, pool: Tensor, segments: Segments, scale: float, softcap: float | None) -> None:
        """pool [P, 2, K, B, H]: this layer's."""
        self._q, self._pool, self._tables, self._scale, self._softcap = q_TNH, pool, segments.tables, scale, softcap
        self._row_of = segments.first_row
        self._parts: dict[int, tuple[int, Part]] = {}
        if segments.prefixes is None:
            return
        first, members = segments.prefixes.first.tolist(), segments.prefixes.members.tolist()
        for group, blocks in enumerate(segments.prefixes.blocks.tolist()):
            mine = members[first[group] : first[group + 1]]
            queries = q_TNH[segments.first_row[mine].to(torch.int64)]
            table = int(segments.table_rows[mine[0]])
            out, weight = self._attend(queries, table, 0, blocks * pool.shape[3])
            for number, segment in enumerate(mine):
                self._parts[segment] = blocks, (out[number : number + 1], weight[number : number + 1])

    def __contains__(self, segment: int) -> bool:
        return segment in self._parts

    def attend(self, segment: int, length: int, table: int) -> Tensor:
        """[N, H]: the prefix's part of a segment and that of its other tokens, merged."""
        blocks, (prefix, prefix_weight) = self._parts[segment]
        row = int(self._row_of[segment])
        own, own_weight = self._attend(self._q[row : row + 1], table, blocks * self._pool.shape[3], length)
        whole = torch.logaddexp(prefix_weight, own_weight)
        merged = prefix * (prefix_weight - whole).exp()[..., None] + own * (own_weight - whole).exp()[..., None]
        return merged[0].to(self._q.dtype)

    def _attend(self, q: Tensor, table: int, low: int, high: int) -> Part:
        """Queries [R, N, H] over tokens low (a whole number of blocks) to high of a sequence."""
        block_tokens = self._pool.shape[3]
        blocks = self._tables[table, low // block_tokens : -(-high // block_tokens)].to(self._pool.device, torch.int64)
        kv = self._pool[blocks].permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, : high - low].float()
        rows, heads, width = q.shape
        grouped = q.float().view(rows, kv.shape[1], -1, width)
        scores = torch.einsum("rkgh,kth->rkgt", grouped, kv[0]) * self._scale
        if self._softcap is not None:
            scores = torch.tanh(scores / self._softcap) * self._softcap
        out = torch.einsum("rkgt,kth->rkgh", torch.softmax(scores, dim=-1), kv[1])
        return out.reshape(rows, heads, width), scores.logsumexp(dim=-1).reshape(rows, heads)
