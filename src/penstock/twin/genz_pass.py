"""One forward pass as GenZ lists it: prefill, decode with beams, or a chunked step; its time, memory and variants.

Layer lists, cuts and rules follow GenZ's public code (arXiv 2406.01698), oddities included where its numbers need them:
the embedding and the classifier are products over all rows; a decoding mixture activates ceil(K / EP) experts a chip
whatever the batch. That last one is optimistic by up to experts / K at large batches; `experts="expected"` counts the
experts that uniform routing is expected to touch instead, E (1 - (1 - K / E)^B).

    B batch, S tokens, D hidden, H heads, K experts per token, E experts; tp, ep, pp the parallel degrees
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Final, Literal, NamedTuple

from penstock.catalog.shape import Attention, FeedForward, ModelShape
from penstock.errors import BadInput
from penstock.twin.genz import MEMORY, Cost, Genz, HeadProduct, Platform, Resident, gemm_product
from penstock.twin.operators import Collective, CollectiveKind, Gemm, Kind

ExpertRule = Literal["paper", "expected"] | float
"""Experts a chip reads in decode. paper: ceil(K / EP). expected: distinct ones over the batch, E / EP x (1 - (1 - K /
E)^B). A number: so many, parts of an expert allowed, for studies of imbalance."""
DecodeItem = int | tuple[int, int] | tuple[int, int, int, int]
"""kv length; (batch, kv); or (beams over the prompt, beams over the rest, prompt, generated)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Parallel degrees."""

    tp: int = 1
    ep: int = 1
    pp: int = 1

    @property
    def chips(self) -> int:
        return self.tp * self.ep * self.pp


class Line(NamedTuple):
    """An operator of a pass on one chip, run `times` times."""

    name: str
    operator: Gemm | HeadProduct | Collective
    times: int
    resident: Resident = ""


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass and the model it is of."""

    lines: tuple[Line, ...]
    cut: Cut
    dtype: str

    def cost(self, line: Line, price: Genz) -> Cost:
        """Of one run of a line."""
        if isinstance(line.operator, Collective):
            return price.collective(line.operator)
        product = gemm_product(line.operator) if isinstance(line.operator, Gemm) else line.operator.product()
        return price.product(product, line.resident)

    def seconds(self, price: Genz) -> float:
        """One (micro-)batch through all stages. Nothing overlaps."""
        return sum(line.times * self.cost(line, price).seconds for line in self.lines)

    def link_seconds(self, price: Genz) -> float:
        return sum(line.times * self.cost(line, price).link_s for line in self.lines)

    def joules(self, price: Genz) -> float:
        """Of one chip."""
        return sum(line.times * price.joules(self.cost(line, price)) for line in self.lines)

    @property
    def weight_bytes(self) -> float:
        """Weights of one chip of every stage together; those of idle experts included."""
        return MEMORY[self.dtype] * sum(
            line.times * line.operator.columns * line.operator.inner
            for line in self.lines
            if isinstance(line.operator, Gemm)
        )

    @property
    def kv_bytes(self) -> float:
        """KV that the pass reads, likewise."""
        return MEMORY[self.dtype] * sum(
            line.times * line.operator.product().w for line in self.lines if isinstance(line.operator, HeadProduct)
        )

    def fitted(self, platform: Platform, *, offload: bool = False) -> Platform:
        """The platform as this pass finds it: as it is when everything fits; with `offload`, at the bandwidth that is
        left when the rest is read over the host link at the same time.

        Raises:
            BadInput: it does not fit and nothing may be offloaded.
        """
        need, have = (self.weight_bytes + self.kv_bytes) / self.cut.pp, platform.memory_bytes
        if need <= have:
            return platform
        if not offload:
            raise BadInput(
                field="memory", value=f"{have / 1e9:.1f} GB", why=f"weights and KV need {need / 1e9:.1f} GB a chip",
                remedy=f"{nodes_needed(need * self.cut.chips, have)} chips, or offload",
            )  # fmt: skip
        slowest = max(have / platform.memory_bytes_per_s, (need - have) / platform.offload_bytes_per_s)
        return replace(platform, memory_bytes_per_s=need / slowest)


def prefill(
    shape: ModelShape, tokens: int, batch: int = 1, cut: Cut = Cut(), dtype: str = "bfloat16", *,
    embeddings: bool = True,
) -> Pass:  # fmt: skip
    """A prompt of `tokens` for each of `batch`. Without `embeddings`: the layers alone, as GenZ's first versions."""
    build = _Builder(shape, cut, dtype, batch)
    if embeddings:
        build.embedding(tokens)
    for group in shape.groups:
        times = build.times(group.count)
        heads, kv_heads = build.heads(group.attention)
        width = group.attention.head_dim
        build.gemm("QKV", (heads + 2 * kv_heads) * width, tokens, shape.hidden, times)
        build.attention("", batch, heads, kv_heads, tokens, tokens, width, times)
        build.gemm("out", shape.hidden, tokens, heads * width, times)
        build.all_reduce("attention", tokens, times)
        build.feed_forward_prefill(group.feed_forward, tokens, times)
    build.send(tokens)
    if embeddings:
        build.classifier(tokens)
    return build.close()


def decode(
    shape: ModelShape, prompt: int, generated: int = 0, batch: int = 1, cut: Cut = Cut(), dtype: str = "bfloat16", *,
    beams: int = 1, experts: ExpertRule = "paper",
) -> Pass:  # fmt: skip
    """A token for each of `batch` sequences (beams counted), over a prompt that `beams` share and what they made."""
    build = _Builder(shape, cut, dtype, batch)
    for group in shape.groups:
        times = build.times(group.count)
        heads, kv_heads = build.heads(group.attention)
        width = group.attention.head_dim
        build.gemm("QKV", (heads + 2 * kv_heads) * width, 1, shape.hidden, times, "in_out")
        build.attention(" pre", batch / beams, heads, kv_heads, 1, prompt, width, times, decoding=True)
        if generated:
            build.attention(" suf", batch, heads, kv_heads, 1, generated, width, times, decoding=True)
        build.gemm("out", shape.hidden, 1, heads * width, times, "in_out")
        build.all_reduce("attention", 1, times)
        build.feed_forward_decode(group.feed_forward, times, experts)
    build.send(1)
    build.classifier(1)
    return build.close()


def chunked(
    shape: ModelShape, prefills: Sequence[tuple[int, int]], decodes: Sequence[DecodeItem] = (), cut: Cut = Cut(),
    dtype: str = "bfloat16",
) -> Pass:  # fmt: skip
    """A step of prompt slices (tokens done, tokens now) and decodes: projections and MLP over all rows together."""
    rows = sum(now for _, now in prefills) + sum(_decode_rows(item) for item in decodes)
    build = _Builder(shape, cut, dtype, 1)
    build.embedding(rows)
    for group in shape.groups:
        times = build.times(group.count)
        heads, kv_heads = build.heads(group.attention)
        width = group.attention.head_dim
        build.gemm("QKV", (heads + 2 * kv_heads) * width, rows, shape.hidden, times, "in_out")
        for done, now in prefills:
            build.attention(" pre", 1, heads, kv_heads, now, done + now, width, times)
        for item in decodes:
            for name, many, shared, context in _decode_parts(item):
                build.attention(name, 1, many * heads, shared * kv_heads, 1, context, width, times, decoding=True)
        build.gemm("out", shape.hidden, rows, heads * width, times, "in_out")
        build.all_reduce("attention", rows, times)
        build.feed_forward_prefill(group.feed_forward, rows, times)
    build.send(rows)
    build.classifier(rows)
    return build.close()


def micro_batch(batch: int, cut: Cut) -> int:
    """Sequences that go through a pipeline together."""
    return max(batch // cut.pp, 1) if cut.pp > 1 else batch


def nodes_needed(need_bytes: float, capacity_bytes: float) -> int:
    """Chips that hold it, rounded up to a power of two.

    >>> nodes_needed(140e9, 80e9), nodes_needed(350e9, 80e9)
    (2, 8)
    """
    chips = max(1, ceil(need_bytes / capacity_bytes))
    return 1 << (chips - 1).bit_length()


def expected_tokens(speculated: int, accept: float) -> float:
    """Tokens a step of speculative decoding gives: min(N, (1 - x^(N+1)) / (1 - x)), each draft token accepted with x.

    >>> expected_tokens(4, 0.0), expected_tokens(4, 1.0), round(expected_tokens(16, 0.7), 3)
    (1.0, 4.0, 3.326)
    """
    if accept >= 1.0:
        return float(speculated)
    return min(float(speculated), (1.0 - accept ** (speculated + 1)) / (1.0 - accept))


def speculative_token_s(target_s: float, draft_s: float, speculated: int, accept: float) -> float:
    """Seconds per token: the target checks `speculated` tokens in `target_s`, the draft made them one by one."""
    return (target_s + speculated * draft_s) / expected_tokens(speculated, accept)


def _decode_rows(item: DecodeItem) -> int:
    return 1 if isinstance(item, int) else item[0] if len(item) == 2 else item[1]


def _decode_parts(item: DecodeItem) -> list[tuple[str, int, int, int]]:
    """(name, multiple of the heads, multiple of the KV heads, context)."""
    if isinstance(item, int):
        return [(" dec", 1, 1, item)]
    if len(item) == 2:
        return [(" dec", item[0], item[0], item[1])]
    return [(" pre", item[0], 1, item[2]), (" suf", item[1], 1, item[3])]


class _Builder:
    """Collects the lines of one pass, cut and with the batch folded into the rows."""

    def __init__(self, shape: ModelShape, cut: Cut, dtype: str, batch: int) -> None:
        self.shape, self.cut, self.dtype, self.batch = shape, cut, dtype, batch
        self.shards = cut.tp * cut.ep
        self.lines: list[Line] = []

    def close(self) -> Pass:
        return Pass(tuple(self.lines), self.cut, self.dtype)

    def times(self, layers: int) -> int:
        """Layers, when each stage takes as many as the largest."""
        return ceil(layers / self.cut.pp) * self.cut.pp

    def heads(self, attention: Attention) -> tuple[int, int]:
        """Of one chip. KV heads that do not divide are held twice."""
        return max(ceil(attention.heads / self.shards), 1), max(ceil(attention.kv_heads / self.shards), 1)

    def gemm(
        self, name: str, columns: int, rows: float, inner: int, times: int = 1, resident: Resident = ""
    ) -> None:  # fmt: skip
        operator = Gemm(_KINDS[name], ceil(self.batch * rows), columns, inner, self.dtype, self.dtype)
        self.lines.append(Line(name, operator, times, resident))

    def attention(
        self, name: str, batch: float, heads: int, kv_heads: int, rows: int, keys: int, width: int, times: int,
        *, decoding: bool = False,
    ) -> None:  # fmt: skip
        """Both halves. A decode keeps its few rows on the chip; a prefill its scores."""
        halves: tuple[tuple[Literal["logit", "attend"], Resident], ...] = (
            (("logit", "in_out"), ("attend", "in_out")) if decoding else (("logit", "out"), ("attend", "in"))
        )
        for part, resident in halves:
            operator = HeadProduct(part, batch, heads, kv_heads, rows, keys, width, self.dtype)
            self.lines.append(Line(part + name, operator, times, resident))

    def all_reduce(self, name: str, rows: float, times: int, *, width: int = 0, ranks: int = 0) -> None:
        self._collective(f"{name} all-reduce", "all_reduce", rows * (width or self.shape.hidden), ranks or self.shards,
                         times)  # fmt: skip

    def embedding(self, rows: int) -> None:
        """As a product of one-hot rows: GenZ's own overcount."""
        self.gemm("embedding", self.shape.hidden, rows, max(self.shape.vocab // self.shards, 1))
        self.all_reduce("embedding", rows, 1)

    def classifier(self, rows: int) -> None:
        self.gemm("classifier", max(self.shape.vocab // self.shards, 1), rows, self.shape.hidden)
        self._collective("classifier all-gather", "all_gather", rows * self.shape.vocab, self.shards, 1)

    def send(self, rows: int) -> None:
        """Between stages."""
        if self.cut.pp > 1:
            size = MEMORY[self.dtype] * self.batch * rows * self.shape.hidden
            self.lines.append(Line("send", Collective("send", size, 2), self.cut.pp - 1))

    def feed_forward_prefill(self, mlp: FeedForward, rows: int, times: int) -> None:
        width, hidden, up = max(ceil(mlp.intermediate / self.cut.tp), 1), self.shape.hidden, mlp.matrices - 1
        if not mlp.experts:
            width = max(ceil(mlp.intermediate / self.shards), 1)
            self.gemm("up+gate", up * width, rows, hidden, times)
            self.gemm("down", hidden, rows, width, times)
            self.all_reduce("MLP", rows, times)
            return
        self._router(mlp, rows, mlp.experts, times)
        held = mlp.experts // self.cut.ep
        # GenZ floors the tokens of an expert: a chunk of fewer than experts / K tokens is computed by none.
        each = rows * mlp.experts_per_token // mlp.experts
        self.gemm("up+gate", held * up * width, each, hidden, times)
        self.gemm("down", hidden, each, held * width, times)
        self._exchange("collect", mlp, rows, times)
        self.all_reduce("MLP", rows, times, ranks=self.cut.tp)

    def feed_forward_decode(self, mlp: FeedForward, times: int, rule: ExpertRule) -> None:
        width, hidden, up = max(ceil(mlp.intermediate / self.cut.tp), 1), self.shape.hidden, mlp.matrices - 1
        if not mlp.experts:
            width = max(ceil(mlp.intermediate / self.shards), 1)
            self.gemm("up+gate", up * width, 1, hidden, times, "in_out")
            self.gemm("down", hidden, 1, width, times, "in_out")
            self.all_reduce("MLP", 1, times)
            return
        self._router(mlp, 1, hidden, times)
        active, held = self._active(mlp, rule), mlp.experts / self.cut.ep
        # GenZ lets every row meet every active expert; where more are read, each has its share of the rows.
        rows = mlp.experts_per_token / self.cut.ep / active if rule == "expected" else 1.0
        self.gemm("up+gate", round(active * up * width), rows, hidden, times, "in_out")
        self.gemm("down", hidden, rows, round(active * width), times, "in_out")
        self.gemm("up+gate", round((held - active) * up * width), 0, hidden, times)
        self.gemm("down", hidden, 0, round((held - active) * width), times)
        self._exchange("collect", mlp, 1, times)
        self.all_reduce("MLP", 1, times, ranks=self.cut.tp)

    def _active(self, mlp: FeedForward, rule: ExpertRule) -> float:
        if rule == "paper":
            return max(1, ceil(mlp.experts_per_token / self.cut.ep))
        if rule == "expected":
            return float(mlp.experts / self.cut.ep * (1.0 - (1.0 - mlp.experts_per_token / mlp.experts) ** self.batch))
        return float(rule)

    def _router(self, mlp: FeedForward, rows: float, reduced: int, times: int) -> None:
        self.gemm("gate", mlp.experts, rows, self.shape.hidden // self.cut.tp, times)
        self.all_reduce("gate", rows, times, width=reduced, ranks=self.cut.tp)
        self._exchange("dispatch", mlp, rows, times)

    def _exchange(self, name: str, mlp: FeedForward, rows: float, times: int) -> None:
        elements = rows * mlp.experts_per_token * self.shape.hidden
        self._collective(f"{name} all-to-all", "all_to_all", elements, self.cut.ep, times)

    def _collective(
        self, name: str, kind: CollectiveKind, elements: float, ranks: int, times: int
    ) -> None:  # fmt: skip
        if ranks > 1:
            size = MEMORY[self.dtype] * self.batch * elements
            self.lines.append(Line(name, Collective(kind, size, ranks), times))


_KINDS: Final[dict[str, Kind]] = {
    "QKV": "qkv", "out": "out_proj", "gate": "router", "up+gate": "gate_up", "down": "down",
    "embedding": "embedding", "classifier": "lm_head",
}  # fmt: skip
