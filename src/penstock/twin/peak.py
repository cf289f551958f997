"""What the hardware's four limits allow one long-context user session, before any efficiency, queueing or paging.

Fu, "Challenges in Deploying Long-Context Transformers" (arXiv 2405.08944): how many users fit is bound by memory size,
prefill by FLOP/s, decode by memory bandwidth, and putting a user's KV away and back by the host link. Every extra cost
over a short context follows from the bytes of the KV cache. No model of a run may beat these numbers: they are the
sanity ceiling of the twin. Tokens, bytes, seconds; s is the context, k the KV bytes of one token.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Final, Literal

from penstock.catalog.device import Device
from penstock.catalog.shape import DTYPE_BYTES, Attention, ModelShape
from penstock.errors import BadInput
from penstock.twin.roofline import matrix_rate, memory_rate

Bound = Literal["memory size", "compute", "memory bandwidth", "host link"]
CAUSAL: Final = 2.0
"""c of the exact causal count: q.k and p.v, half of the square masked. The paper's figures fit c = 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds a model on one device or on several that split it evenly; talk between them is free here."""

    flop_per_s: float
    memory_bytes: float
    memory_bytes_per_s: float
    host_bytes_per_s: float | None = None
    """None: nothing can be put away."""

    @classmethod
    def of(cls, device: Device, dtype: str = "bfloat16", devices: int = 1) -> Limits:
        """Limits of `devices` alike, whose products have weights of `dtype` (roofline.matrix_rate)."""
        return cls(
            flop_per_s=devices * matrix_rate(device, dtype, ideal=True),
            memory_bytes=devices * device.memory_bytes.value,
            memory_bytes_per_s=devices * memory_rate(device, ideal=True),
            host_bytes_per_s=None if device.host_link is None else devices * device.host_link.bytes_per_s.value,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """By how much the KV cache shrinks along each of its four axes (the paper's section 3); 1: not at all."""

    layer: float = 1.0
    """Layers that share or skip KV. The only axis that also spares prefill."""
    head: float = 1.0
    token: float = 1.0
    hidden: float = 1.0
    """Quantisation, low rank."""

    def __post_init__(self) -> None:
        for axis in ("layer", "head", "token", "hidden"):
            if getattr(self, axis) < 1.0:
                raise BadInput(
                    field=f"kv_compress.{axis}", value=getattr(self, axis), why="it would grow the cache",
                    remedy="a factor of 1 or more",
                )  # fmt: skip

    @property
    def factor(self) -> float:
        return self.layer * self.head * self.token * self.hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A user who uploads a document once and asks about it `turns` times, thinking in between."""

    context: int
    turns: int = 1
    answer_tokens: int = 250
    think_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """Sessions per second that the limits allow, and which of them binds."""

    per_s: float
    bound: Bound
    switching: bool
    """Whether it is reached by putting idle users away between turns."""

    @property
    def per_hour(self) -> float:
        return 3600.0 * self.per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The four metrics of one model on given limits."""

    shape: ModelShape
    limits: Limits
    weights: str = "bfloat16"
    experts: str | None = None
    """In which the routed experts are held; None: as the rest."""
    kv: str = "bfloat16"
    compression: Compression = Compression()
    causal: float = CAUSAL

    # -- what is moved ------------------------------------------------------------------------------------------

    @property
    def weight_bytes(self) -> float:
        """Everything that must be resident."""
        return self._in_bytes(self.shape.parameters, self.shape.expert_parameters)

    @property
    def active_bytes(self) -> float:
        """The least of the weights that any decode step reads: one token's experts; of tables only the LM head."""
        chosen = sum(
            group.count * group.feed_forward.experts_per_token * group.feed_forward.expert_parameters(self.shape.hidden)
            for group in self.shape.groups
            if group.feed_forward.experts
        )
        return self._in_bytes(self._active, chosen)

    def kv_bytes(self, context: int) -> float:
        """KV of one user: linear in the context, but for layers with a window.

        Recurrent layers add their state, whatever the context."""
        element, total = DTYPE_BYTES[self.kv], 0.0
        for group in self.shape.groups:
            attention = group.attention
            seen = context if attention.window is None else min(context, attention.window)
            total += group.count * element * (attention.kv_elements() * seen + attention.state_elements)
        return total / self.compression.factor

    def read_bytes(self, context: int) -> float:
        """What one decode step reads of it: all, but for sparse attention, which reads its index and the best few."""
        spared = 0.0
        for group in self.shape.groups:
            index = group.attention.indexer
            if index is not None and context > index.top_k:
                wide = group.attention.kv_elements() - index.head_dim
                spared += group.count * DTYPE_BYTES[self.kv] * wide * (context - index.top_k)
        return self.kv_bytes(context) - spared / self.compression.factor

    @property
    def _active(self) -> int:
        """Parameters whose products every token needs: positions, norms and biases (under 1 %) are left out."""
        return self.shape.active_parameters - self.shape.other_parameters

    # -- (1) to (4) ---------------------------------------------------------------------------------------------

    def users(self, context: int, activation_bytes: float = 0.0) -> int:
        """(1) Users whose KV fits beside the weights: floor((C - W - activations) / (k s)). 0: not even one."""
        free = self.limits.memory_bytes - self.weight_bytes - activation_bytes
        return max(0, floor(free / self.kv_bytes(context))) if context > 0 else 0

    def prefill_s(self, tokens: int, cached: int = 0) -> float:
        """(2) (2 N s + c L d s^2) / F, d being heads x head width; `cached` of the tokens need no work.

        The LM head is counted for one token, as an engine runs it; the paper's N includes it (1.3 % of 34B)."""
        new, head = tokens - cached, self.shape.vocab * self.shape.hidden
        flop = 2.0 * ((self._active - head) * new + head)
        for group in self.shape.groups:
            pairs = _square(tokens, group.attention) - _square(cached, group.attention)
            flop += self.causal * group.count * _width(group.attention) * pairs
        return flop / self.compression.layer / self.limits.flop_per_s

    def step_s(self, sequences: int, context: int) -> float:
        """One decode step of `sequences` with `context` tokens of KV each: weights once, KV per user; or its FLOP."""
        return max(self._decode_bytes_s(sequences, context), self._decode_flop_s(sequences, context))

    def decode_s(self, tokens: int, context: int, sequences: int = 1) -> float:
        """(3) G (W + sum of k s) / B: `tokens` steps, the context taken as constant over them, as the paper does."""
        return tokens * self.step_s(sequences, context)

    def switch_s(self, context_out: int, context_in: int) -> float:
        """(4) One user's KV to the host and another's back: (KV out + KV in) / B. No overlap."""
        if self.limits.host_bytes_per_s is None:
            return float("inf")
        return (self.kv_bytes(context_out) + self.kv_bytes(context_in)) / self.limits.host_bytes_per_s

    @property
    def critical_tokens(self) -> float:
        """Tokens in flight above which a step is bound by compute: F / B x bytes of a weight / 2."""
        return self.limits.flop_per_s / self.limits.memory_bytes_per_s * DTYPE_BYTES[self.weights] / 2

    def switch_needed_s(self, users: int, context: int) -> float:
        """What a turn pays for switching when `users` are present: nothing as long as they all fit."""
        return 0.0 if users <= self.users(context) else self.switch_s(context, context)

    # -- sessions and requests ----------------------------------------------------------------------------------

    def sessions(self, session: Session) -> Sessions:
        """The most sessions per second, by keeping users in memory while they think or by putting them away.

        Kept: no more than `users` at once, so Little's law bounds the rate by users / session length. Put away: each
        turn but the first pays a switch on the host link, and the device need not wait for those who think.
        """
        users = self.users(session.context)
        if users == 0:
            return Sessions(per_s=0.0, bound="memory size", switching=False)
        prefill = self.prefill_s(session.context)
        decode = session.turns * self.decode_s(session.answer_tokens, session.context, users) / users
        busy: Bound = "compute" if prefill >= decode else "memory bandwidth"
        alone = prefill + session.turns * self.decode_s(session.answer_tokens, session.context, users)
        length = alone + (session.turns - 1) * session.think_s
        kept_limits: tuple[tuple[float, Bound], ...] = ((users / length, "memory size"), (1 / (prefill + decode), busy))
        kept, kept_bound = min(kept_limits)
        switch = (session.turns - 1) * self.switch_s(session.context, session.context)
        away = 1 / (prefill + decode + switch)
        if away > kept:
            return Sessions(per_s=away, bound="host link" if switch > prefill + decode else busy, switching=True)
        return Sessions(per_s=kept, bound=kept_bound, switching=False)

    def requests_per_s(self, prompt: int, output: int, cached: int = 0) -> tuple[float, Bound]:
        """A ceiling over any simulated or measured throughput of equal requests, and what sets it.

        Compute: prefill of the new tokens and one pass for each later token. Bandwidth: each later token reads its
        KV, and a share of the weights among as many users as fit at the shortest context they ever have."""
        users = max(1, self.users(prompt))
        # A user decodes with prompt .. prompt + output - 2 tokens behind it; the sum over a window is not more.
        later = max(0, output - 1)
        read = later * (self.active_bytes / users + self.read_bytes(prompt))
        flop_s = self.prefill_s(prompt, cached) + later * 2.0 * self._active / self.limits.flop_per_s
        bytes_s = read / self.limits.memory_bytes_per_s
        if self.users(prompt + later) == 0:
            return 0.0, "memory size"
        return (1 / flop_s, "compute") if flop_s >= bytes_s else (1 / bytes_s, "memory bandwidth")

    # -- inside -------------------------------------------------------------------------------------------------

    def _in_bytes(self, parameters: int, experts: int) -> float:
        dense = DTYPE_BYTES[self.weights]
        return dense * (parameters - experts) + DTYPE_BYTES[self.experts or self.weights] * experts

    def _decode_bytes_s(self, sequences: int, context: int) -> float:
        return (self.active_bytes + sequences * self.read_bytes(context)) / self.limits.memory_bytes_per_s

    def _decode_flop_s(self, sequences: int, context: int) -> float:
        flop = 2.0 * self._active
        for group in self.shape.groups:
            attention = group.attention
            seen = 0 if attention.state_elements else min(context, _sight(attention) or context)
            flop += group.count * 4.0 * _width(attention) * seen
        return sequences * flop / self.limits.flop_per_s


def _width(attention: Attention) -> float:
    """Heads x mean width of their keys and values: the d of c L d s^2."""
    if attention.latent is not None:
        latent = attention.latent
        return attention.heads * (latent.nope_dim + latent.rope_dim + latent.value_dim) / 2
    return attention.heads * (attention.head_dim + attention.value_width) / 2


def _sight(attention: Attention) -> int | None:
    """Tokens that a query attends to at most; None: all before it. Of an indexer's scores the ceiling knows nothing."""
    return attention.indexer.top_k if attention.indexer is not None else attention.window


def _square(tokens: int, attention: Attention) -> float:
    """s^2, or what a window leaves of it in the same measure (twice the causal pairs); 0 for recurrent layers."""
    if attention.state_elements:
        return 0.0
    sight = _sight(attention)
    if sight is None or tokens <= sight:
        return float(tokens) ** 2
    return float(sight) * (2 * tokens - sight)
