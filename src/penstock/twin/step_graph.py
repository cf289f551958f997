"""A step as operators, in four parts that depend on different sums, so that each part can be priced once and kept.

rows      on the tokens of the step: embedding, norms, projections, MLP or experts, collectives
head      on the sampled rows: LM head, sampler
decode    on how many sequences decode and on the sum of their contexts
prefill   on each chunk's past and length

Every operator has the shape that one device of the layout runs; `times` says how often it runs in a step, one after
the other. Attention of `attention_dp` groups runs side by side on a share of the tokens each; since they meet at the
experts in every layer, all of them take as long as the one that has most.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from penstock.catalog.shape import DTYPE_BYTES, Attention, FeedForward, Latent, LayerGroup, ModelShape
from penstock.twin.layout import Layout, Precision
from penstock.twin.operators import (
    Collective,
    DecodeAttention,
    Elementwise,
    Experts,
    Gemm,
    Kind,
    LatentDecode,
    LatentPrefill,
    Operator,
    PrefillAttention,
)


class Placed(NamedTuple):
    """An operator, and how many times a step runs it."""

    operator: Operator
    times: int


class StepGraph:
    """The operators of one model under one layout and precision."""

    def __init__(self, shape: ModelShape, layout: Layout, precision: Precision) -> None:
        self.shape, self.layout, self.precision = shape, layout, precision
        self._element = DTYPE_BYTES[precision.activations]

    # -- the four parts -----------------------------------------------------------------------------------------

    def rows(self, tokens: int, local: int | None = None) -> list[Placed]:
        """What `tokens` rows cost whatever their context: everything but attention itself and the head. `local` of
        them are in the attention group that has most (None: they are spread evenly)."""
        if not tokens:
            return []
        return [*self.local_rows(self.share(tokens) if local is None else local), *self.joint_rows(tokens)]

    def local_rows(self, local: int) -> list[Placed]:
        """What an attention group does with `local` rows of its own."""
        if not local:
            return []
        shape = self.shape
        placed = [Placed(self._elementwise("embedding", local, shape.hidden, shape.hidden), 1)]
        for group in shape.groups:
            placed += self._projections(group, local)
            placed += self._feed_forward(group, local)
        stages = self.layout.pipeline_parallel
        if stages > 1:
            nodes = 2 if self.layout.devices > self.layout.devices_per_node else 1
            placed.append(Placed(Collective("send", local * shape.hidden * self._element, 2, nodes), stages - 1))
        return placed

    def joint_rows(self, tokens: int) -> list[Placed]:
        """What all attention groups do together with the rows of all of them: routed experts, and gathering rows for
        experts that are only cut and not spread."""
        layout, placed = self.layout, []
        for group in self.shape.groups:
            ffn, count = group.feed_forward, group.count
            if not ffn.experts or not tokens:
                continue
            experts = Experts(
                tokens, self.shape.hidden, ffn.intermediate, ffn.experts, ffn.experts_per_token,
                layout.moe_tensor_parallel, layout.expert_parallel, ffn.gated, self.precision.experts,
                self.precision.activations,
            )  # fmt: skip
            placed.append(Placed(experts, count))
            if layout.attention_dp > 1 and layout.expert_parallel == 1:
                ranks, whole = layout.tensor_parallel * layout.attention_dp, tokens * self.shape.hidden * self._element
                placed.append(Placed(Collective("all_gather", whole, ranks, layout.nodes), count))
                placed.append(Placed(Collective("reduce_scatter", whole, ranks, layout.nodes), count))
        return placed

    def head(self, sampled: int) -> list[Placed]:
        """Final norm, LM head and sampler over the rows that give a token."""
        if not sampled:
            return []
        shape, layout = self.shape, self.layout
        local = self.share(sampled)
        columns = -(-shape.vocab // layout.tensor_parallel)
        placed = [
            Placed(self._elementwise("norm", local, shape.hidden, shape.hidden), 1),
            Placed(Gemm("lm_head", local, columns, shape.hidden, self.precision.head, self.precision.activations), 1),
        ]
        if layout.tensor_parallel > 1:
            gathered = local * shape.vocab * self._element
            placed.append(Placed(Collective("all_gather", gathered, layout.tensor_parallel, self._tensor_nodes()), 1))
        # Logits are read as they come, kept in fp32, and read again for the choice.
        placed.append(
            Placed(Elementwise("sampler", local * shape.vocab * (self._element + 4.0), local * shape.vocab * 4.0,
                               rows=local), 1)
        )  # fmt: skip
        return placed

    def decode(self, sequences: int, context: int, spread: float = 0.0) -> list[Placed]:
        """Attention of the decode set: `context` is the sum of its KV lengths, this step's tokens included."""
        if not sequences:
            return []
        local = self.share(sequences)
        share = local / sequences
        placed = []
        for group in self.shape.groups:
            attention = group.attention
            seen = round(context * share)
            if attention.window is not None:
                # From the mean, since only the sum is known: exact where all contexts lie on one side of the window.
                seen = min(seen, local * attention.window)
            if attention.indexer is not None:
                placed.append(self._index_scan(attention, local, seen, seen, group.count))
                seen = min(seen, local * attention.indexer.top_k)
            if attention.state_elements:
                placed += self._linear(group, local, local)
            elif attention.latent is not None:
                placed += self._latent_decode(group, attention.latent, local, seen, spread)
            else:
                heads, kv_heads = self._heads(attention)
                placed.append(
                    Placed(
                        DecodeAttention(
                            local, seen, heads, kv_heads, attention.head_dim, attention.window,
                            self.precision.activations, self.precision.kv, spread,
                        ), group.count,
                    )
                )  # fmt: skip
        return placed

    def prefill(self, chunks: Iterable[tuple[int, int]]) -> list[Placed]:
        """Attention of prompt chunks, each (past, tokens), of the attention group that has most of it."""
        placed = []
        for past, tokens in self.busiest(chunks):
            for group in self.shape.groups:
                placed += self._prefill_chunk(group, past, tokens)
        return placed

    def busiest(self, chunks: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """The chunks of the attention group that has most to do, the groups taking the largest of them in turn."""
        ordered = sorted(chunks, key=lambda chunk: chunk[1] * (2 * chunk[0] + chunk[1]), reverse=True)
        return ordered[:: self.layout.attention_dp]

    def share(self, rows: int) -> int:
        """Rows of an attention group, spread evenly."""
        return -(-rows // self.layout.attention_dp)

    # -- inside -------------------------------------------------------------------------------------------------

    def _tensor_nodes(self) -> int:
        return max(1, -(-self.layout.tensor_parallel // self.layout.devices_per_node))

    def _heads(self, attention: Attention) -> tuple[int, int]:
        """Query and KV heads of one device; KV heads are copied where there are fewer than devices."""
        parts = self.layout.tensor_parallel
        return max(1, -(-attention.heads // parts)), max(1, -(-attention.kv_heads // parts))

    def _elementwise(self, kind: Kind, rows: int, read: float, written: float) -> Elementwise:
        """`read` and `written` elements a row."""
        return Elementwise(kind, rows * read * self._element, rows * written * self._element, rows=rows)

    def _gemm(self, kind: Kind, rows: int, columns: int, inner: int) -> Gemm:
        return Gemm(kind, rows, columns, inner, self.precision.weights, self.precision.activations)

    def _projections(self, group: LayerGroup, rows: int) -> list[Placed]:
        """Norms, QKV, RoPE, the KV write and the output projection of one layer, and the sum over its devices."""
        shape, attention, parts = self.shape, group.attention, self.layout.tensor_parallel
        heads, kv_heads = self._heads(attention)
        count, width = group.count, attention.head_dim
        placed = [Placed(self._norm(rows), 2 * count)]
        latent, linear = attention.latent, attention.linear
        if latent is not None:
            query = heads * (latent.nope_dim + latent.rope_dim)
            down = latent.kv_rank + latent.rope_dim
            if latent.query_rank is None:
                placed.append(Placed(self._gemm("qkv", rows, query + down, shape.hidden), count))
            else:
                # The two down-projections are one product in every engine that runs this model.
                placed.append(Placed(self._gemm("qkv", rows, latent.query_rank + down, shape.hidden), count))
                placed.append(Placed(self._gemm("qkv", rows, query, latent.query_rank), count))
            value, cached = heads * latent.value_dim, down
        elif linear is not None:
            columns = linear.conv_channels + linear.value_width + 2 * linear.value_heads
            placed.append(Placed(self._gemm("qkv", rows, -(-columns // parts), shape.hidden), count))
            query, value, cached = -(-linear.conv_channels // parts), -(-linear.value_width // parts), 0
        else:
            value = heads * attention.value_width
            columns = heads * width + kv_heads * (width + attention.value_width)
            columns += value if attention.gated_output else 0
            placed.append(Placed(self._gemm("qkv", rows, columns, shape.hidden), count))
            query, cached = heads * width, kv_heads * (width + attention.value_width)
        if attention.indexer is not None:
            placed += self._index_projections(attention, rows, count)
        placed.append(Placed(self._elementwise("rope", rows, query + cached / 2, query + cached / 2), count))
        if not attention.state_elements:
            kv = DTYPE_BYTES[self.precision.kv]
            write = Elementwise("kv_write", rows * cached * self._element, rows * cached * kv, rows=rows)
            placed.append(Placed(write, count))
        placed.append(Placed(self._gemm("out_proj", rows, shape.hidden, value), count))
        return placed + self._sum_up(rows, parts, self._tensor_nodes(), count)

    def _index_projections(self, attention: Attention, rows: int, count: int) -> list[Placed]:
        """Queries, the key and the head weights of a sparse attention's indexer; whole on every device."""
        index, latent = attention.indexer, attention.latent
        assert index is not None
        rank = latent.query_rank if latent is not None and latent.query_rank is not None else self.shape.hidden
        return [
            Placed(self._gemm("qkv", rows, index.heads * index.head_dim, rank), count),
            Placed(self._gemm("qkv", rows, index.head_dim + index.heads, self.shape.hidden), count),
        ]

    def _index_scan(self, attention: Attention, rows: int, pairs: float, keys: float, count: int) -> Placed:
        """The indexer's scores of all query-key pairs, `keys` keys read once."""
        index = attention.indexer
        assert index is not None
        flop = 2.0 * index.heads * index.head_dim * pairs
        read = keys * index.head_dim * DTYPE_BYTES[self.precision.kv]
        return Placed(Elementwise("attention_index", read, 4.0 * pairs, flop, rows), count)

    def _norm(self, rows: int) -> Elementwise:
        """Residual added and normalised in one pass; cut along the tokens under sequence parallelism."""
        parts = self.layout.tensor_parallel if self.layout.sequence_parallel else 1
        return self._elementwise("norm", -(-rows // parts), 2 * self.shape.hidden, 2 * self.shape.hidden)

    def _sum_up(self, rows: int, ranks: int, nodes: int, count: int) -> list[Placed]:
        """Partial sums of `rows` rows become whole on every rank."""
        if ranks == 1:
            return []
        message = rows * self.shape.hidden * self._element
        if self.layout.sequence_parallel:
            return [
                Placed(Collective("reduce_scatter", message, ranks, nodes), count),
                Placed(Collective("all_gather", message, ranks, nodes), count),
            ]
        return [Placed(Collective("all_reduce", message, ranks, nodes), count)]

    def _feed_forward(self, group: LayerGroup, local: int) -> list[Placed]:
        ffn, layout = group.feed_forward, self.layout
        if not ffn.experts:
            return self._mlp(ffn.intermediate, ffn, local, group.count) + self._sum_up(
                local, layout.tensor_parallel, self._tensor_nodes(), group.count
            )
        return self._around_experts(group, ffn, local)

    def _mlp(self, intermediate: int, ffn: FeedForward, rows: int, count: int) -> list[Placed]:
        hidden = self.shape.hidden
        width = -(-intermediate // self.layout.tensor_parallel)
        up = (ffn.matrices - 1) * width
        return [
            Placed(self._gemm("gate_up", rows, up, hidden), count),
            Placed(self._elementwise("activation", rows, up, width), count),
            Placed(self._gemm("down", rows, hidden, width), count),
        ]

    def _around_experts(self, group: LayerGroup, ffn: FeedForward, local: int) -> list[Placed]:
        """Router, shared experts and what is sent between devices; the routed experts are `joint_rows`.

        Groups of attention data parallelism hold different tokens: they send each to the devices of its experts and
        fetch the results (all-to-all), or, when experts are only cut and not spread, gather all tokens first.
        """
        layout, hidden, count = self.layout, self.shape.hidden, group.count
        placed = [Placed(Gemm("router", local, ffn.experts, hidden, self.precision.activations), count)]
        if ffn.shared_intermediate:
            placed += self._mlp(ffn.shared_intermediate, ffn, local, count)
        if layout.attention_dp == 1:
            return placed + self._sum_up(local, layout.tensor_parallel, layout.nodes, count)
        if layout.expert_parallel > 1:
            message = local * hidden * self._element * ffn.experts_per_token
            placed.append(Placed(Collective("all_to_all", message, layout.expert_parallel, layout.nodes), 2 * count))
        return placed

    def _linear(self, group: LayerGroup, rows: int, sequences: int) -> list[Placed]:
        """Recurrent attention: each sequence's state is read and written once; 4 FLOP per state element and row."""
        state = group.attention.state_elements / self.layout.tensor_parallel
        moved = sequences * state * 4.0
        return [Placed(Elementwise("attention_linear", moved, moved, 4.0 * rows * state, rows), group.count)]

    def _latent_decode(self, group: LayerGroup, latent: Latent, rows: int, context: int, spread: float) -> list[Placed]:
        """Absorbed form: queries go up into the latent space, outputs come down from it, head by head."""
        heads, _ = self._heads(group.attention)
        count = group.count
        return [
            Placed(self._gemm("qkv", rows, heads * latent.kv_rank, latent.nope_dim), count),
            Placed(
                LatentDecode(rows, context, heads, latent.kv_rank, latent.rope_dim, self.precision.activations,
                             self.precision.kv, spread), count,
            ),
            Placed(self._gemm("out_proj", rows, heads * latent.value_dim, latent.kv_rank), count),
        ]  # fmt: skip

    def _prefill_chunk(self, group: LayerGroup, past: int, tokens: int) -> list[Placed]:
        attention, count = group.attention, group.count
        heads, kv_heads = self._heads(attention)
        if attention.state_elements:
            return self._linear(group, tokens, 1)
        placed = []
        if attention.indexer is not None:
            # Attention itself is priced over all keys: what sparse prefill saves depends on kernels not measured yet.
            pairs = tokens * past + tokens * (tokens + 1) / 2
            placed.append(self._index_scan(attention, tokens, pairs, past + tokens, count))
        latent = attention.latent
        if latent is not None:
            expand = heads * (latent.nope_dim + latent.value_dim)
            return [
                *placed,
                Placed(self._gemm("qkv", past + tokens, expand, latent.kv_rank), count),
                Placed(
                    LatentPrefill(tokens, past, heads, latent.kv_rank, latent.rope_dim, latent.nope_dim,
                                  latent.value_dim, self.precision.activations, self.precision.kv), count,
                ),
            ]  # fmt: skip
        operator = PrefillAttention(
            tokens, past, heads, kv_heads, attention.head_dim, attention.window, self.precision.activations,
            self.precision.kv, attention.value_dim,
        )  # fmt: skip
        return [*placed, Placed(operator, count)]
