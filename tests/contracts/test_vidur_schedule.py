"""The control plane schedules as Vidur does, pass by pass, at Vidur's own prices (Agrawal et al., MLSys 2024).

tests/goldens/vidur holds what the real Vidur did with its Sarathi scheduler. Correspondence of settings: token_budget
is chunk_size, max_seqs batch_size_cap; memory is paged, order arrival, and no step is planned ahead. Vidur rounds its
watermark down to whole blocks, control up. `pressed` has evictions, with the one condition of Vidur's lifted that
control does not share: a free block for every decode, also for one that needs none (README.md there).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BadInput
from penstock.twin.load import StepLoad
from penstock.twin.vidur import REQUIRED, VidurPrice, VidurTables, read_predictions
from tests.goldens.vidur.compare import TOLERANCE_S, Golden, Watch, differences, instance, run

FOLDER = Path(__file__).parents[1] / "goldens" / "vidur"
RUNS = {name: Golden.read(FOLDER / f"{name}.npz") for name in ("ample", "tight", "pressed")}
SMALL = {name: {(rows,): 0.001 * at for rows in range(1, 65)} for at, name in enumerate(REQUIRED, start=1)} | {
    "attn_decode": {
        (batch, context): 0.01 * batch + 0.0001 * context for batch in range(1, 9) for context in range(0, 4096, 64)
    },
    "attn_prefill": {(past, side**2): 0.02 + past * 1e-5 for past in range(0, 512, 64) for side in range(1, 65)},
}  # fmt: skip


@pytest.mark.parametrize("coast", [True, False], ids=["coasting", "step by step"])
@pytest.mark.parametrize("name", RUNS)
def test_same_passes_same_batches_same_times(name: str, coast: bool) -> None:
    golden = RUNS[name]
    watch = Watch(len(golden.arrival_s))
    run(golden, instance(golden, watch, coast=coast))
    said, most = differences(golden.passes, watch.passes())
    assert not said
    assert most <= TOLERANCE_S
    assert len(watch.evictions) == {"ample": 0, "tight": 0, "pressed": 25}[name]


@pytest.mark.parametrize(
    ("name", "setting", "by"),
    [("ample", "batch_size_cap", -1), ("ample", "chunk_size", -8),
     ("tight", "watermark_blocks", 1), ("tight", "num_blocks", 1), ("pressed", "num_blocks", 1)],
)  # fmt: skip
def test_another_setting_gives_another_schedule(name: str, setting: str, by: int) -> None:
    """The goldens are sharp: the smallest change of a setting that binds shows."""
    golden = RUNS[name]
    golden = replace(golden, about={**golden.about, setting: golden.about[setting] + by})
    watch = Watch(len(golden.arrival_s))
    try:
        run(golden, instance(golden, watch))
    except BadInput:  # a step that Vidur never had, so that its price was not recorded
        return
    assert differences(golden.passes, watch.passes())[0]


def tables(**changed: object) -> VidurTables:
    return VidurTables(SMALL | changed, layers=10, all_reduce_extra_ms=0.5)  # type: ignore[arg-type]


def test_a_step_is_the_sum_of_its_operators() -> None:
    """By hand: 2 decodes of 70 tokens each (this one's included), a chunk of 3 behind 65, one of 4: 9 rows, padded to
    16 but for writing K and V."""
    price = VidurPrice(tables(attn_kv_cache_save={(9,): 0.3, (16,): 99.0}))
    load = StepLoad(decoding=2, decode_context=138, chunks=((65, 3), (0, 4)))
    rows = sum(0.001 * at for at, name in enumerate(REQUIRED, start=1) if not name.startswith("attn_k")
               and name not in ("attn_decode", "attn_prefill"))  # fmt: skip
    decode = (0.01 * 2 + 0.0001 * 128) * 1.1
    prefill = (0.02 + 128e-5) * 1.1
    assert price.seconds(load) == pytest.approx((rows + 0.3 + decode + prefill) * 10 / 1000, rel=1e-12)


def test_two_gpus_reduce_twice_a_layer() -> None:
    load = StepLoad(decoding=1, decode_context=10)
    alone, both = (VidurPrice(tables(**more)).seconds(load) for more in ({}, {"all_reduce": {(8,): 0.25}}))
    assert both - alone == pytest.approx(2 * 0.75 * 10 / 1000)


def test_a_step_without_rows_takes_no_time() -> None:
    assert VidurPrice(tables()).seconds(StepLoad()) == 0.0


@given(
    decoding=st.integers(1, 8), context=st.integers(0, 3000), most=st.integers(1, 200),
    until=st.one_of(st.just(float("inf")), st.floats(0.0, 0.5)),
)  # fmt: skip
def test_a_stretch_is_its_steps(decoding: int, context: int, most: int, until: float) -> None:
    price = VidurPrice(tables())
    now, ends, sum_now = 0.125, [], context
    for _ in range(most):
        now += price.seconds(StepLoad(decoding=decoding, decode_context=sum_now))
        sum_now += decoding
        ends.append(now)
        if now >= until:
            break
    assert price.decode_ends(decoding, context, 0, 0.125, most, until) == ends


def test_a_size_outside_the_tables_is_named() -> None:
    with pytest.raises(BadInput, match=r"attn_decode.*\(9, 64\).*prediction_max_batch_size"):
        VidurPrice(tables()).seconds(StepLoad(decoding=9, decode_context=9))


def test_a_missing_operator_is_named() -> None:
    with pytest.raises(BadInput, match="no table of mlp_act"):
        tables(mlp_act={})


def test_tables_come_from_the_cache_folder_of_vidur(tmp_path: Path) -> None:
    (tmp_path / "attn_decode_0123abcd_predictions.csv").write_text(
        "batch_size,kv_cache_size,prediction\n1,64,0.1\n2,64,0.30000000000000004\n"
    )
    (tmp_path / "attn_decode_0123abcd_training_predictions.csv").write_text("not,read\n")
    assert read_predictions(tmp_path) == {"attn_decode": {(1, 64): 0.1, (2, 64): 0.30000000000000004}}
    other = tmp_path / "attn_decode_89efcdab_predictions.csv"
    other.write_text("x\n")
    with pytest.raises(BadInput, match="several tables of attn_decode"):
        read_predictions(tmp_path)
    other.unlink()
    (tmp_path / "add_89efcdab_predictions.csv").write_text("num_tokens,prediction\n1,fast\n")
    with pytest.raises(BadInput, match=r"add_89efcdab_predictions.csv, line 2"):
        read_predictions(tmp_path)
