"""Vidur's own price of a step: its predictor's tables, looked up and added as it does (Agrawal et al., MLSys 2024).

Vidur trains one regression per operator on profiles of a GPU and tabulates each over every size it may meet, in
milliseconds a layer. A step is then a few look-ups:

    rows, padded to 8       projections, MLP, norms, RoPE, residual add, all-reduce twice
    rows                    writing K and V
    decoding, mean context  decode attention; the mean is cut to an integer, then rounded up to `granularity`
    past, side^2            prefill attention of all chunks as one: pasts, each rounded up, are summed; side is the root
                            of the sum of squared chunk lengths, rounded

Sums are made in Vidur's order, so that seconds agree to the last bit. Embedding, LM head, sampler and host time are not
in it, as in Vidur without its CPU overheads; pipelines are not covered. What Vidur's numbers are worth as predictions
is another matter: here they show that the schedule of this control plane is Vidur's (tests/contracts).
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, repeat
from pathlib import Path
from typing import Final

from penstock.errors import BadInput
from penstock.twin.load import StepLoad
from penstock.twin.twin import Pricing

Table = Mapping[tuple[int, ...], float]
"""Sizes to milliseconds a layer."""
REQUIRED: Final = (
    "attn_pre_proj", "attn_post_proj", "attn_rope", "attn_kv_cache_save", "attn_decode", "attn_prefill",
    "input_layernorm", "mlp_up_proj", "mlp_down_proj", "mlp_act", "add",
)  # fmt: skip
OPTIONAL: Final = ("post_attention_layernorm", "all_reduce")
"""Nothing for a model without the second norm, and on one GPU."""
_BY_OTHER: Final = ("attn_kv_cache_save", "attn_decode", "attn_prefill")
"""Not by padded rows."""
_PAD: Final = 8
"""Rows are padded to a multiple of this (Batch._total_num_tokens_rounded)."""
_MS: Final = 1e-3
_FILE: Final = re.compile(r"([a-z_]+)_[0-9a-f]{8}_predictions\.csv")


@dataclass(frozen=True, slots=True)
class VidurTables:
    """One model on one kind of GPU, as Vidur's predictor has it.

    Raises BadInput when an operator is missing.
    """

    operators: Mapping[str, Table]
    """Vidur's operator names (`REQUIRED`, `OPTIONAL`). Keys are (rows,), for attn_decode (batch, context), for
    attn_prefill (past, side^2)."""
    layers: int
    granularity: int = 64
    """Contexts are rounded up to a multiple of this (kv_cache_prediction_granularity)."""
    decode_overhead: float = 0.1
    """Share added to the attention of two or more decodes; 0 without grouped queries, there and here."""
    prefill_overhead: float = 0.1
    """The same for two or more chunks."""
    all_reduce_extra_ms: float = 0.02
    """Launch and skew, added to each all-reduce."""

    def __post_init__(self) -> None:
        missing = [name for name in REQUIRED if not self.operators.get(name)]
        if missing:
            raise BadInput(
                field="operators", value=sorted(self.operators), why="no table of " + ", ".join(missing),
                remedy="take all tables of one run of Vidur's predictor",
            )  # fmt: skip


def read_predictions(folder: Path) -> dict[str, dict[tuple[int, ...], float]]:
    """The tables that Vidur's predictor left in its cache folder, `<operator>_<hash>_predictions.csv`: sizes, and the
    prediction last.

    Raises BadInput: two tables of one operator (two models or settings share the folder), or a line that is not one.
    """
    tables: dict[str, dict[tuple[int, ...], float]] = {}
    for path in sorted(folder.glob("*_predictions.csv")):
        match = _FILE.fullmatch(path.name)
        if match is None or match[1].endswith("_training"):
            continue
        if match[1] in tables:
            raise BadInput(
                field="folder", value=str(folder), why=f"several tables of {match[1]}",
                remedy="one cache folder per model and setting (metrics_config.cache_dir in Vidur)",
            )  # fmt: skip
        table = tables[match[1]] = {}
        with path.open(encoding="utf-8", newline="") as lines:
            rows = csv.reader(lines)
            next(rows, None)
            for row in rows:
                try:
                    table[tuple(map(int, row[:-1]))] = float(row[-1])
                except (ValueError, IndexError):
                    raise BadInput(
                        field=f"{path.name}, line {rows.line_num}", value=",".join(row),
                        why="not sizes (integers) and a prediction in milliseconds", remedy="let Vidur write it anew",
                    ) from None  # fmt: skip
    return tables


@dataclass
class VidurPrice(Pricing):
    """Of steps, from tables. Keeps every plain decode step it has priced: batch x contexts / granularity.

    Raises BadInput, from any method, for a size outside the tables.
    """

    tables: VidurTables
    _rows: dict[int, tuple[float, float, float, float, float]] = field(default_factory=dict)
    _decodes: dict[int, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))

    def seconds(self, load: StepLoad) -> float:
        """Of one step; nothing for a step without rows. Swaps are free: Vidur has none."""
        chunks, decoding = load.chunks, load.decoding
        if not chunks:
            return self._plain(decoding, self._context(decoding, load.decode_context)) if decoding else 0.0
        decode = self._decode(decoding, self._context(decoding, load.decode_context)) if decoding else 0.0
        grain = self.tables.granularity
        past = prompt = squares = 0
        for start, tokens in chunks:
            past += -(-start // grain) * grain
            prompt += tokens
            squares += tokens * tokens
        if len(chunks) == 1:
            prefill = self._look_up("attn_prefill", past, squares)
        else:
            prefill = self._look_up("attn_prefill", past, round(squares**0.5) ** 2) * (1 + self.tables.prefill_overhead)
        return self._total(decoding + prompt, decode, prefill)

    def decode_ends(
        self, decoding: int, context: int, squares: int, now: float, most: int, until: float
    ) -> list[float]:
        """When each of the next `most` plain decode steps ends, the first of them beginning at `now`; stops after the
        first that does not end before `until`. Steps up to the next multiple of `granularity` cost the same."""
        ends: list[float] = []
        while most > 0:
            mean = context // decoding + 1
            rounded = self._context(decoding, context)
            steps = min(most, rounded - mean + 1)
            run = list(accumulate(repeat(self._plain(decoding, rounded), steps), initial=now))
            if run[-1] >= until:
                ends.extend(run[1 : 1 + next(at for at, end in enumerate(run[1:], start=1) if end >= until)])
                break
            ends.extend(run[1:])
            now, most, context = run[-1], most - steps, context + steps * decoding
        return ends

    # -- inside -----------------------------------------------------------------------------------------------------

    def _context(self, decoding: int, context: int) -> int:
        """Mean KV length, this step's token included, as the tables have it."""
        grain = self.tables.granularity
        return -(-(context // decoding + 1) // grain) * grain

    def _plain(self, decoding: int, context: int) -> float:
        row = self._decodes[decoding]
        seconds = row.get(context)
        if seconds is None:
            seconds = row[context] = self._total(decoding, self._decode(decoding, context), 0.0)
        return seconds

    def _decode(self, decoding: int, context: int) -> float:
        return self._look_up("attn_decode", decoding, context) * (1 + self.tables.decode_overhead * (decoding > 1))

    def _total(self, rows: int, decode: float, prefill: float) -> float:
        """Seconds of a step, added up in the order of Vidur's ExecutionTime: attention, then MLP, then the add."""
        fixed = self._rows.get(rows)
        if fixed is None:
            fixed = self._rows[rows] = self._fixed(rows)
        before, reduce, norm, mlp, add = fixed
        return ((before + decode + prefill + reduce + norm) + mlp + add) * self.tables.layers * _MS

    def _fixed(self, rows: int) -> tuple[float, float, float, float, float]:
        """What depends on the number of rows alone: before attention, one all-reduce, norm, MLP, add."""
        padded = -(-rows // _PAD) * _PAD
        ms = {name: self._look_up(name, padded) for name in REQUIRED if name not in _BY_OTHER}
        operators = self.tables.operators
        norm, reduce = (self._look_up(name, padded) if operators.get(name) else 0.0 for name in OPTIONAL)
        if operators.get("all_reduce"):
            reduce += self.tables.all_reduce_extra_ms
        before = (
            ms["attn_pre_proj"] + ms["attn_post_proj"] + ms["attn_rope"] + self._look_up("attn_kv_cache_save", rows)
        )
        mlp = ms["mlp_up_proj"] + ms["mlp_down_proj"] + ms["mlp_act"] + reduce + norm
        return before, reduce, ms["input_layernorm"], mlp, ms["add"]

    def _look_up(self, name: str, *sizes: int) -> float:
        milliseconds = self.tables.operators[name].get(sizes)
        if milliseconds is None:
            raise BadInput(
                field=f"operators.{name}", value=sizes, why="the table has no such size",
                remedy="let Vidur predict more: prediction_max_batch_size, prediction_max_prefill_chunk_size and "
                "prediction_max_tokens_per_request bound its tables",
            )  # fmt: skip
        return milliseconds
