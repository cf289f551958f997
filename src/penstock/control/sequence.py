"""A request's mutable record while the replica works on it."""

from __future__ import annotations

from penstock.control.calendar import Dated
from penstock.control.lifecycle import Event, State, move
from penstock.control.request import Request

Tokens = tuple[int, ...] | range


class Sequence(Dated):
    """One request under way. Counts are those after the last *planned* step, not the last committed one.

    While in the decode set, `computed` and `outputs` stand still and the replica's decode clock moves instead (a
    step is a delta, Contract 2); `settle` brings them up to date when the sequence leaves the set.
    """

    __slots__ = (
        "admissions", "arrival", "blocks", "border", "cached_tokens", "computed", "host_blocks", "id", "join_clock",
        "max_tokens", "next_key", "number", "outputs", "prefill_tokens", "prompt", "prompt_tokens", "request", "shared",
        "shared_blocks", "state",
    )  # fmt: skip

    def __init__(self, request: Request, number: int, arrival: float) -> None:
        super().__init__()  # due: the tick of the decode clock that makes its last token
        self.request = request
        self.id = request.id
        self.number = number
        """Order of submission; decides every tie."""
        self.arrival = arrival
        self.state = State.WAITING
        prompt = request.prompt
        self.prompt: Tokens = prompt if type(prompt) is range or type(prompt) is tuple else tuple(prompt)
        """Slices of it can be compared: a list would equal no tuple."""
        self.prompt_tokens = len(prompt)
        self.max_tokens = request.max_tokens
        self.outputs = len(request.output)
        """Output tokens so far."""
        self.prefill_tokens = self.prompt_tokens + self.outputs
        """Tokens to compute before the next new token: prompt and all output so far."""
        self.computed = 0
        """Tokens whose KV is in the blocks."""
        self.admissions = 0
        self.cached_tokens = 0
        """Prompt tokens found in the cache at the first admission."""
        self.blocks: list[int] = []
        """Block table: the KV of tokens [i * block_tokens, (i + 1) * block_tokens) is in blocks[i]."""
        self.host_blocks: list[int] = []
        self.shared: object | None = None
        """The memory's own mark: the deepest tree node this sequence holds on to."""
        self.shared_blocks = 0
        """How many of `blocks`, from the first on, belong to the tree."""
        self.next_key: int | bytes | None = None
        """The memory's note: key of the block after the shared ones, once they were looked for in vain."""
        self.border = (request.prefix_group or request.tenant, request.salt, request.adapter)
        """Prefixes are shared inside it only."""
        self.join_clock = 0

    def apply(self, event: Event) -> None:
        """Walk the table of moves. Raises ProtocolError."""
        self.state = move(self.state, event)

    def settle(self, clock: int) -> None:
        """Leave the decode set at decode clock `clock`: each tick since joining was one token computed and one made."""
        steps = clock - self.join_clock
        self.computed += steps
        self.outputs += steps
        self.join_clock = clock

    def __repr__(self) -> str:
        return f"Sequence({self.id!r}, {self.state.value}, {self.computed} computed, {self.outputs} out)"
