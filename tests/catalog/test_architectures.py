"""Every architecture of the catalogue against what was published, and against the reference implementation."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest

from penstock.catalog import architectures, model_shape
from penstock.catalog.models_by_name import Architecture
from penstock.errors import InvalidDeployment

EVERY = list(architectures().values())
SILICON = Path(__file__).parents[3] / "shared/data/aiconfigurator/silicon_sample.csv.gz"
UNKNOWN_TO_REFERENCE = {
    "chatglm", "internlm", "internlm2", "qwen",  # not in transformers, only in their repositories
    "dbrx",  # its class no longer builds from the repository's own config
}  # fmt: skip


def test_there_are_at_least_the_forty_that_were_asked_for() -> None:
    assert len(EVERY) >= 55
    assert sum(entry.exact for entry in EVERY) >= 50


@pytest.mark.parametrize("entry", EVERY, ids=lambda entry: entry.name)
def test_parameters_are_those_published(entry: Architecture) -> None:
    counted = entry.shape().parameters + entry.not_counted
    if entry.exact:
        assert counted == entry.parameters
    else:
        assert counted == pytest.approx(entry.parameters, rel=0.01)


@pytest.mark.parametrize("entry", [e for e in EVERY if e.active], ids=lambda entry: entry.name)
def test_active_parameters_are_those_published(entry: Architecture) -> None:
    # Cards differ in whether they count the embedding table and the LM head: one of the conventions must agree. A
    # card that says 3B may mean 3.3: 10 %.
    shape = entry.shape()
    table = shape.vocab * shape.hidden
    assert entry.active is not None
    assert 0.9 * (shape.active_parameters - table) <= entry.active <= 1.1 * (shape.active_parameters + table)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("llama-3-8b", 8_030_261_248, None),
        ("llama-3-70b", 70_553_706_496, None),
        ("mixtral-8x7b", 46_702_792_704, None),
        ("qwen2.5-7b", 7_615_616_512, None),
        ("deepseek-v3", 671.0e9, 37e9),
        ("gpt-oss-120b", 116.83e9, 5.13e9),
        ("gpt-oss-20b", 20.91e9, 3.61e9),
    ],
)
def test_counts_that_everyone_knows(name: str, total: float, active: float | None) -> None:
    shape = model_shape(name)
    assert shape.parameters == pytest.approx(total, rel=5e-4 if total % 1e6 == 0 else 0)
    if active is not None:
        assert shape.active_parameters == pytest.approx(active, rel=0.011)


def one_of_each_kind() -> list[Architecture]:
    """The smallest of each model_type, plus those whose layers are of several kinds."""
    smallest: dict[str, Architecture] = {}
    for entry in sorted(EVERY, key=lambda entry: entry.parameters):
        smallest.setdefault(entry.config["model_type"], entry)
    also = ("falcon-40b", "glm-4.5", "qwen3-235b-a22b", "llama-4-maverick")
    kinds = [*smallest.values(), *(architectures()[name] for name in also)]
    return [entry for entry in kinds if entry.config["model_type"] not in UNKNOWN_TO_REFERENCE]


@pytest.mark.parametrize("entry", one_of_each_kind(), ids=lambda entry: entry.name)
def test_parameters_are_those_of_the_reference_implementation(entry: Architecture) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    transformers.logging.set_verbosity_error()
    keys = {key: value for key, value in entry.config.items() if key not in ("quantization_config", "model_type")}
    # Kimi K2 is DeepSeek V3's architecture under a name of its own.
    kind = {"kimi_k2": "deepseek_v3"}.get(entry.config["model_type"], entry.config["model_type"])
    config = transformers.AutoConfig.for_model(kind, **keys)
    with torch.device("meta"):  # modules without memory
        model = transformers.AutoModelForCausalLM.from_config(config)
    counted = sum(parameter.numel() for parameter in model.parameters())
    # The correction of the router's choice is stored with the weights, as a buffer.
    counted += sum(b.numel() for name, b in model.named_buffers() if name.endswith("e_score_correction_bias"))
    assert entry.shape().parameters == counted


def test_names_and_repositories_are_unambiguous() -> None:
    called: dict[str, str] = {}
    for entry in EVERY:
        for name in {entry.name, (entry.repository or entry.name).lower(), *(alias.lower() for alias in entry.aliases)}:
            assert called.setdefault(name, entry.name) == entry.name, name
        assert entry.source, entry.name


@pytest.mark.parametrize("entry", EVERY, ids=lambda entry: entry.name)
def test_every_name_and_repository_leads_to_its_shape(entry: Architecture) -> None:
    for name in filter(None, (entry.name, entry.name.upper(), entry.repository, *entry.aliases)):
        assert model_shape(name) == entry.shape(), name


@pytest.mark.parametrize(
    ("called", "name", "dtype"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b", "bfloat16"),
        ("nvidia/Llama-3.1-8B-Instruct-FP8", "llama-3.1-8b", "fp8"),
        ("nvidia/DeepSeek-R1-NVFP4", "deepseek-v3", "nvfp4"),
        ("nvidia/DeepSeek-V3.1-NVFP4", "deepseek-v3", "nvfp4"),
        ("nvidia/Qwen3-32B-NVFP4", "qwen3-32b", "nvfp4"),
        ("Qwen/Qwen3-235B-A22B-FP8", "qwen3-235b-a22b", "fp8_block"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "qwen2.5-7b", "int4"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8", "llama-3.1-8b", "int8"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b", "bfloat16"),
        ("zai-org/GLM-5-FP8", "glm-5", "fp8_block"),
        ("deepseek-r1", "deepseek-v3", "fp8_block"),
        ("gpt-3", "gpt-3-175b", "float16"),
    ],
)
def test_variants_are_the_base_shape_in_another_type(called: str, name: str, dtype: str) -> None:
    variant, base = model_shape(called), architectures()[name].shape()
    assert (variant.name, variant.dtype) == (name, dtype)
    assert (variant.groups, variant.parameters) == (base.groups, base.parameters)


def test_every_model_of_the_measured_points_is_known() -> None:
    if not SILICON.is_file():
        pytest.skip("the measured points are not here")
    with gzip.open(SILICON, "rt", encoding="utf-8") as file:
        paths = {row["model_path"] for row in csv.DictReader(file)}
    assert len(paths) == 15
    for path in sorted(paths):
        assert model_shape(path).parameters > 8e9


def test_an_unknown_name_is_answered_with_its_nearest() -> None:
    with pytest.raises(InvalidDeployment) as caught:
        model_shape("meta-llama/Lama-3-8b")
    assert caught.value.field == "model.path"
    assert "llama-3-8b" in caught.value.why
    with pytest.raises(InvalidDeployment, match="there is no such directory"):
        model_shape("qwertyuiop")
