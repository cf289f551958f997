"""`penstock learn`: from measured operators to a price that simulate takes, and what it says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.catalog.hardware_load import device
from penstock.twin.calibrated import OperatorTime, write_table
from penstock.twin.measured import InvalidProfile
from penstock.twin.measured.learnable import read_points
from penstock.twin.operators import Collective, DecodeAttention, Elementwise, Experts, Gemm, PrefillAttention
from penstock.twin.roofline import Roofline
from tests.cli.conftest import Penstock

HEADER = "operator,rows,columns,inner,dtype,past,context,heads,kv_heads,head_dim,us"
SHAPES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 3 8B on a device that takes three times its roofline, and a norm that says too little."""
    roofline, lines = Roofline(device("l4")), [HEADER]
    for rows in (1, 8, 64, 512):
        for columns, inner in SHAPES:
            us = 3e6 * roofline.price(Gemm("qkv", rows, columns, inner, "bfloat16")).seconds
            lines.append(f"qkv,{rows},{columns},{inner},bfloat16,,,,,,{us}")
        for context in (16, 512, 4096):
            us = 3e6 * roofline.price(DecodeAttention(rows, rows * context, 32, 8, 128)).seconds
            lines.append(f"attention_decode,{rows},,,,,{context},32,8,128,{us}")
            us = 3e6 * roofline.price(PrefillAttention(rows, context, 32, 8, 128)).seconds
            lines.append(f"attention_prefill,{rows},,,,{context},,32,8,128,{us}")
    lines.append("norm,8,,,,,,,,,5")
    path = tmp_path_factory.mktemp("learn") / "l4.csv"
    path.write_text("\n".join(lines))
    return path


def test_what_is_learned_prices_a_simulation(penstock: Penstock, profile: Path) -> None:
    out = profile.with_name("l4.json")
    shown = penstock("learn", str(profile), "--hardware", "l4", "--out", str(out), "--folds", "4").stdout
    assert "Gemm/bfloat16/bfloat16" in shown
    assert "under 4" in shown  # One attention shape alone: nothing to hold out.
    assert "1 of norm" in shown
    asked = ["simulate", "llama-3-8b", "--hardware.name", "l4", "--json", "--set", "requests=20", "--set", "rate=0.5"]
    plain = json.loads(penstock(*asked, "--set", "twin.price=roofline").stdout)
    found = json.loads(penstock(*asked, "--set", "twin.price=learned", "--set", f"twin.data={out}").stdout)
    assert found["config"]["price"].startswith("learned")
    assert found["p50_tpot_ms"] > 2 * plain["p50_tpot_ms"]
    assert found["basis_share"]["extrapolated"] > 0
    other = penstock(*asked[:2], "--hardware.name", "a10", *asked[4:], "--set", "twin.price=learned",
                     "--set", f"twin.data={out}").stdout  # fmt: skip
    assert any("trained on l4, not on a10" in note for note in json.loads(other)["notes"])


def test_scores_are_of_points_and_of_shapes_held_out(penstock: Penstock, profile: Path) -> None:
    words = ["learn", str(profile), "--hardware", "l4", "--folds", "2", "--json"]
    found = json.loads(penstock(*words, "--out", str(profile.with_name("two.json"))).stdout)
    gemm = found["families"]["Gemm/bfloat16/bfloat16"]
    assert (gemm["points"], gemm["shapes"]) == (16, 4)
    assert gemm["grouped_error"] >= 0
    assert found["left_out"] == {"norm": 1}


def test_a_calibration_is_a_profile_too(tmp_path: Path) -> None:
    table = tmp_path / "mine.operators.csv"
    gemms = [
        OperatorTime(kind="down", dtype="float32", rows=rows, columns=64 * wide, inner=64, seconds=1e-4 * rows * wide)
        for rows in (1, 2, 4) for wide in (1, 2)
    ]  # fmt: skip
    write_table(table, [*gemms, OperatorTime(kind="norm", dtype="", rows=4, row_bytes=64.0, seconds=1e-5)])
    found = read_points([table])
    assert found.points == [
        (Gemm("down", each.rows, each.columns, 64, "float32", "float32"), each.seconds) for each in gemms
    ]
    assert found.left_out == {"norm": 1}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("operator,rows,us\nqvk,1,2\n", "line 2, column operator"),
        ("operator,rows,us\nqkv,1,2\nqkv,1,x\n", "line 3, column us"),
        ("operator,rows,columns,inner,dtype,us\nqkv,1,2,3,fp7,4\n", "line 2, column dtype"),
        ("operator,rows\nqkv,1\n", "line 2, column seconds"),
    ],
)
def test_a_bad_profile_is_refused_with_its_place(text: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(InvalidProfile) as refused:
        read_points([path])
    assert refused.value.field == f"bad.csv, {place}"


def test_every_kind_of_operator_can_be_learned(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    path.write_text(
        "operator,rows,bytes,ranks,nodes,read_bytes,written_bytes,hidden,intermediate,experts,experts_per_token,us\n"
        "all_reduce,,1e6,8,2,,,,,,,9\nnorm,4,,,,64,32,,,,,8\nexperts,16,,,,,,64,128,8,2,7\n"
    )
    ring, norm, experts = (operator for operator, _ in read_points([path]).points)
    assert ring == Collective("all_reduce", 1e6, 8, 2)
    assert norm == Elementwise("norm", 64.0, 32.0, rows=4)
    assert experts == Experts(16, 64, 128, 8, 2)


def test_nothing_to_learn_from_is_a_mistake_with_the_reason(penstock: Penstock, tmp_path: Path) -> None:
    path = tmp_path / "thin.csv"
    path.write_text("operator,rows,us\nqkv,1,2\n")
    assert "1 of qkv" in penstock("learn", str(path), "--hardware", "l4", expect=2).stderr
