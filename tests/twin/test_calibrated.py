"""Prices from measurements: what was measured comes back, what lies between is between, and the basis tells."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.catalog.hardware_load import device
from penstock.errors import BadInput
from penstock.twin.calibrated import (
    Calibrated,
    OperatorTime,
    calibration_of,
    read_table,
    table_path,
    time_of,
    write_table,
)
from penstock.twin.operators import DecodeAttention, Elementwise, Gemm, Operator, PrefillAttention
from penstock.twin.roofline import Roofline

ROWS = (1, 4, 8, 9, 32, 128)


def gemm(rows: int, columns: int = 64, inner: int = 32) -> Gemm:
    return Gemm("qkv", rows, columns, inner, "float32", "float32")


def prefill(tokens: int, past: int, heads: int = 4) -> PrefillAttention:
    return PrefillAttention(tokens, past, heads, 2, 16, dtype="float32", kv_dtype="float32")


def decode(sequences: int, context: int) -> DecodeAttention:
    return DecodeAttention(sequences, context, 4, 2, 16, dtype="float32", kv_dtype="float32")


def norm(rows: int, width: int = 100) -> Elementwise:
    return Elementwise("norm", rows * width / 2, rows * width / 2, rows=rows)


def law(operator: Operator) -> float:
    """A machine that is exactly as the interpolation assumes."""
    match operator:
        case Gemm():
            return 1e-6 * (5 + operator.rows) * operator.columns / 64 * operator.inner / 32
        case DecodeAttention():
            return 1e-6 * (2 + 3 * operator.sequences + 0.1 * operator.context)
        case PrefillAttention():
            return 1e-8 * operator.tokens**1.5 * (1 + operator.past / 64)
        case _:
            return 1e-7 * (3 + operator.work().bytes)


MEASURED: list[Operator] = [
    *(gemm(rows) for rows in ROWS),
    *(decode(n, n * mean) for n in (1, 2, 8, 32) for mean in (16, 64, 256)),
    *(prefill(tokens, past) for tokens in (16, 64, 256) for past in (0, 64, 512)),
    *(norm(rows) for rows in ROWS),
]


@pytest.fixture(scope="module")
def price() -> Calibrated:
    return Calibrated(lines(), Roofline(device("cpu")))


def lines() -> list[OperatorTime]:
    found = [time_of(operator, law(operator), 3) for operator in MEASURED]
    assert None not in found
    return [line for line in found if line is not None]


def test_what_was_measured_comes_back(price: Calibrated) -> None:
    for operator in MEASURED:
        found = price.price(operator)
        assert found.seconds == pytest.approx(law(operator), rel=1e-12)
        assert (found.model, found.basis) == ("calibrated", "measured")


@pytest.mark.parametrize(
    "operator", [gemm(20), decode(5, 5 * 100), decode(20, 20 * 17), prefill(100, 300), prefill(17, 1), norm(77)]
)
def test_between_measurements_the_law_holds_that_work_follows(price: Calibrated, operator: Operator) -> None:
    found = price.price(operator)
    assert found.seconds == pytest.approx(law(operator), rel=1e-9)
    assert found.basis == "measured"


@pytest.mark.parametrize(
    "operator",
    [gemm(500), gemm(4, columns=128), decode(64, 64 * 64), decode(2, 2 * 1000), prefill(1024, 0), prefill(64, 4096),
     norm(1000), norm(8, width=200), prefill(64, 64, heads=8)],
)  # fmt: skip
def test_outside_of_them_the_basis_says_so(price: Calibrated, operator: Operator) -> None:
    found = price.price(operator)
    assert found.basis == "extrapolated"
    assert found.seconds > 0


def test_another_shape_is_scaled_by_its_work(price: Calibrated) -> None:
    assert price.price(gemm(8, columns=128)).seconds == pytest.approx(2 * law(gemm(8)))
    assert price.price(prefill(64, 64, heads=8)).seconds == pytest.approx(2 * law(prefill(64, 64)))


def test_what_was_never_measured_is_priced_by_the_limits_of_the_machine(price: Calibrated) -> None:
    operator = Elementwise("router", 1e6, 1e6, rows=4)
    found = price.price(operator)
    assert found.seconds == Roofline(device("cpu")).price(operator).seconds
    assert (found.model, found.basis) == ("roofline", "extrapolated")


@given(rows=st.integers(1, 4096), more=st.integers(1, 64))
def test_more_rows_never_cost_less(rows: int, more: int) -> None:
    price = Calibrated(lines(), Roofline(device("cpu")))
    assert price.price(gemm(rows)).seconds <= price.price(gemm(rows + more)).seconds


@given(sequences=st.integers(1, 256), mean=st.integers(1, 4096))
def test_no_price_is_negative_anywhere(sequences: int, mean: int) -> None:
    price = Calibrated(lines(), Roofline(device("cpu")))
    assert price.price(decode(sequences, sequences * mean)).seconds > 0
    assert price.price(prefill(sequences, mean)).seconds > 0


def test_a_windowed_chunk_is_priced_by_the_pairs_that_its_window_leaves(price: Calibrated) -> None:
    def windowed(tokens: int, past: int, window: int) -> float:
        operator = PrefillAttention(tokens, past, 4, 2, 16, window, dtype="float32", kv_dtype="float32")
        return price.price(operator).seconds

    # 64 tokens behind 4,096, each seeing 96: as many pairs as 64 tokens behind 63.5 have.
    assert windowed(64, 4096, 96) == pytest.approx(law(prefill(64, 64)), rel=0.02)
    assert windowed(64, 512, 96) == windowed(64, 4096, 96)
    # A window longer than all there is changes nothing; one shorter than the chunk leaves a share of its own pairs.
    assert windowed(64, 512, 1000) == pytest.approx(price.price(prefill(64, 512)).seconds)
    assert 0 < windowed(256, 0, 32) < 0.3 * price.price(prefill(256, 0)).seconds


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_table(path, lines())
    assert read_table(path) == lines()


def test_a_bad_table_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_table(path, lines())
    text = path.read_text().splitlines()
    path.write_text("\n".join([*text[:6], text[6].replace("float32", "float32,oops"), *text[7:]]))
    with pytest.raises(BadInput, match=r"table\.csv:7"):
        read_table(path)
    path.write_text("kind,seconds\n")
    with pytest.raises(BadInput, match="version"):
        read_table(path)


def test_a_device_has_a_calibration_only_where_its_table_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_HARDWARE_DIR", str(tmp_path))
    cpu = device("cpu")
    assert calibration_of(cpu) is None
    write_table(table_path("cpu"), lines())
    found = calibration_of(cpu)
    assert found is not None
    assert found.price(gemm(8)).seconds == pytest.approx(law(gemm(8)))
