"""Profiles of one deployment: the open format, and the readers of other simulators' files."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from penstock.errors import BadInput
from penstock.twin.measured import InvalidProfile, read_profile, read_serving_sim, read_vidur
from penstock.twin.operators import (
    Collective,
    DecodeAttention,
    Elementwise,
    Experts,
    Gemm,
    Operator,
    PrefillAttention,
)
from penstock.twin.price import Estimate

DATA = Path(__file__).parents[3] / "shared" / "data"

OPEN = """operator,rows,columns,inner,past,context,heads,kv_heads,head_dim,active,bytes,ranks,us
qkv,1,,,,,,,,,,,10
qkv,64,,,,,,,,,,,20
down,8,128,64,,,,,,,,,5
norm,1,,,,,,,,,,,1
attention_prefill,512,,,0,,8,2,64,,,,100
attention_prefill,512,,,512,,8,2,64,,,,300
attention_decode,4,,,,1000,8,2,64,,,,40
attention_decode,8,,,,1000,8,2,64,,,,80
attention_decode,4,,,,1000,,,,,,,44
experts,16,,,,,,,,8,,,7
all_reduce,,,,,,,,,,4096,2,6
"""


class Assumed:
    name = "assumed"

    def price(self, operator: Operator) -> Estimate:
        return Estimate(1.0, self.name, "assumed")


def test_each_kind_of_line_prices_its_operator(tmp_path: Path) -> None:
    file = tmp_path / "profile.csv"
    file.write_text(OPEN)
    profile = read_profile(file, Assumed())
    for operator, microseconds, basis in (
        (Gemm("qkv", 64, 999, 999, "fp8"), 20, "measured"),  # no width in the file: whatever the model has
        (Gemm("down", 8, 128, 64, "bfloat16"), 5, "measured"),
        (Elementwise("norm", 1, 1, rows=1), 1, "measured"),
        (PrefillAttention(512, 256, 8, 2, 64), 200, "measured"),
        (DecodeAttention(6, 6 * 1000, 8, 2, 64), 60, "measured"),
        (DecodeAttention(4, 4 * 1000, 5, 5, 99), 44, "measured"),  # a shape of its own: the line without one
        (Collective("all_reduce", 4096, 2), 6, "measured"),
    ):
        assert profile.price(operator) == Estimate(pytest.approx(microseconds * 1e-6), "measured", basis)
    assert profile.price(Gemm("lm_head", 8, 128, 64, "fp8")).basis == "assumed"
    assert profile.price(Collective("all_reduce", 4096, 4)).basis == "assumed"
    assert profile.price(Elementwise("activation", 1, 1, rows=1)).basis == "assumed"


@pytest.mark.parametrize(
    ("line", "column"),
    [("matmul,1,,,,,,,,,,,10", "operator"), ("qkv,many,,,,,,,,,,,10", "rows"), ("qkv,1,,,,,,,,,,,-1", "us"),
     ("attention_decode,1,,,,,,,,,,,10", "context"), ("all_reduce,,,,,,,,,,4096,,6", "ranks")],
)  # fmt: skip
def test_a_bad_line_is_named_with_its_column(tmp_path: Path, line: str, column: str) -> None:
    file = tmp_path / "profile.csv"
    file.write_text(OPEN.splitlines()[0] + "\nqkv,1,,,,,,,,,,,10\n" + line + "\n")
    with pytest.raises(InvalidProfile, match=f"profile.csv, line 3, column {column}"):
        read_profile(file, Assumed())


def test_parquet_and_gzip_say_the_same(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [{"operator": "qkv", "rows": 1, "seconds": 1e-5}, {"operator": "qkv", "rows": 64, "seconds": 2e-5}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "profile.parquet")
    (tmp_path / "profile.csv.gz").write_bytes(gzip.compress(b"operator,rows,ms\nqkv,1,0.01\nqkv,64,0.02\n"))
    gemm = Gemm("qkv", 32, 1, 1, "bfloat16")
    found = [read_profile(tmp_path / name, Assumed()).price(gemm) for name in ("profile.parquet", "profile.csv.gz")]
    assert found[0].seconds == pytest.approx(found[1].seconds)
    with pytest.raises(BadInput, match=r"nothing\.csv"):
        read_profile(tmp_path / "nothing.csv", Assumed())


def serving_sim(folder: Path) -> Path:
    """A profile whose uneven batches lie a quarter of the way to the longest, and whose mixed calls double decodes."""
    (folder / "dense.csv").write_text(
        "layer,tokens,time_us\n" + "".join(
            f"{layer},{tokens},{tokens + base}\n"
            for layer, base in (("qkv_proj", 10), ("rotary_emb", 1), ("qk_norm", 2)) for tokens in (1, 64)
        )
    )  # fmt: skip
    (folder / "per_sequence.csv").write_text("layer,sequences,time_us\nlm_head,1,100\nlm_head,64,200\nsampler,1,9\n")
    decode = [f"0,0,{n},{kv},{n * kv / 100}\n" for n in (1, 16, 64) for kv in (100, 1000, 8000)]
    mixed = [f"256,0,{n},{kv},{30 + 2 * n * kv / 100}\n" for n in (1, 16, 64) for kv in (100, 1000, 8000)]
    (folder / "attention.csv").write_text(
        "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n256,0,0,0,30\n256,512,0,0,60\n" + "".join(decode + mixed)
    )
    (folder / "moe.csv").write_text("tokens,activated_experts,time_us\n1,8,50\n64,8,60\n1,64,400\n64,64,450\n")
    (folder / "skew.csv").write_text(
        "regime,n,t_mean_us,t_max_us,t_skew_us\npure,16,100,200,125\nmixed,16,100,200,190\n"
    )
    return folder


def test_layers_of_the_serving_simulator_price_our_operators(tmp_path: Path) -> None:
    profile = read_serving_sim(serving_sim(tmp_path), Assumed())
    assert profile.price(Gemm("qkv", 1, 5, 5, "bfloat16")).seconds == pytest.approx(11e-6)
    assert profile.price(Elementwise("rope", 1, 1, rows=64)).seconds == pytest.approx((65 + 66) * 1e-6)
    assert profile.price(Gemm("lm_head", 64, 5, 5, "bfloat16")).seconds == pytest.approx(200e-6)
    assert profile.price(PrefillAttention(256, 512, 8, 2, 64)).seconds == pytest.approx(60e-6)
    # 64 of 64 experts get one of so many tokens; cut in two, a device holds 32 of them and half of the choices.
    assert profile.price(Experts(64, 1, 1, 64, 8)).seconds == pytest.approx(450e-6, rel=0.01)
    assert profile.price(Experts(64, 1, 1, 64, 8, expert_parallel=2)).seconds == pytest.approx(225e-6, rel=0.1)


def test_uneven_contexts_cost_more_and_decodes_beside_a_chunk_too(tmp_path: Path) -> None:
    profile = read_serving_sim(serving_sim(tmp_path), Assumed())
    even = DecodeAttention(16, 16 * 1000, 8, 2, 64)
    uneven = DecodeAttention(16, 16 * 1000, 8, 2, 64, spread=0.5)
    longest = 1 + 0.5 * (2 * 2.772588722) ** 0.5
    assert profile.uses_spread
    assert profile.price(even).seconds == pytest.approx(160e-6)
    assert profile.price(uneven).seconds == pytest.approx(160e-6 * (1 + 0.25 * (longest - 1)), rel=1e-3)
    assert profile.beside_chunk(even, 300) == pytest.approx(320e-6)
    assert read_profile_without_mixed(tmp_path).beside_chunk(even, 300) is None


def read_profile_without_mixed(folder: Path):  # type: ignore[no-untyped-def]
    file = folder / "open.csv"
    file.write_text(OPEN)
    return read_profile(file, Assumed())


def test_a_folder_without_its_files_or_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidProfile, match=r"holds no dense\.csv"):
        read_serving_sim(tmp_path, Assumed())
    serving_sim(tmp_path)
    (tmp_path / "per_sequence.csv").write_text("layer,time_us\nlm_head,1\n")
    with pytest.raises(InvalidProfile, match=r"per_sequence\.csv.*sequences"):
        read_serving_sim(tmp_path, Assumed())
    (tmp_path / "per_sequence.csv").write_text("layer,sequences,time_us\nlm_head,1,soon\n")
    with pytest.raises(InvalidProfile, match=r"per_sequence\.csv, line 2, column time_us"):
        read_serving_sim(tmp_path, Assumed())


def test_an_operator_that_never_took_any_time_is_refused(tmp_path: Path) -> None:
    (tmp_path / "profile.csv").write_text("operator,rows,us\nnorm,8,0\n")
    with pytest.raises(InvalidProfile, match="above zero"):
        read_profile(tmp_path / "profile.csv", Assumed())


def test_a_compressed_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(OPEN.encode())
    (tmp_path / "profile.csv.gz").write_bytes(whole[:-12])
    with pytest.raises(InvalidProfile, match=r"profile\.csv\.gz"):
        read_profile(tmp_path / "profile.csv.gz", Assumed())


@pytest.mark.skipif(not (DATA / "vidur-profiles").is_dir(), reason="needs the profiles beside the repository")
def test_vidurs_profile_of_llama_2_70b_on_a100() -> None:
    pytest.importorskip("pyarrow")
    folder = DATA / "vidur-profiles"
    profile = read_vidur(
        folder / "compute_mlp.parquet", "meta-llama/Llama-2-70b-hf", Assumed(), tensor_parallel=2, device="a100",
        attention=folder / "history_a100_attention.parquet",
    )  # fmt: skip
    up = Gemm("gate_up", 2048, 28672, 8192, "bfloat16")
    assert 0.5 < up.work().flop / 312e12 / profile.price(up).seconds < 1.0
    decode = DecodeAttention(32, 32 * 1024, 32, 4, 128)
    assert 0.3 < decode.work().bytes / 2.039e12 / profile.price(decode).seconds < 1.0
    with pytest.raises(InvalidProfile, match="no rows of nothing"):
        read_vidur(folder / "compute_mlp.parquet", "nothing", Assumed())
