"""From names to a checkpoint, and from a checkpoint to sizes, before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from penstock.catalog import models_in_the_box, resolve_model
from penstock.control.request import Request
from penstock.deployment import Deployment
from penstock.errors import InvalidDeployment, InvalidRequest
from penstock.runtime import size as sizing
from penstock.runtime.fingerprint import fingerprint
from penstock.runtime.offline import generate
from penstock.runtime.size import size_up

Make = Callable[..., Any]


def test_the_model_in_the_box_is_found_by_its_name() -> None:
    path = resolve_model("millrace")
    assert path == models_in_the_box()["millrace"]
    assert (path / "config.json").is_file()


def test_a_directory_is_found_by_its_path_and_wins_over_a_name(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_model(str(checkpoint)) == checkpoint
    (tmp_path / "millrace").symlink_to(checkpoint)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("millrace") == checkpoint


@pytest.mark.parametrize(("name", "why"), [("gpt-99", "no such directory"), (".", "no config.json")])
def test_what_is_not_a_model_is_refused_with_what_is(
    name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidDeployment, match=why) as refused:
        resolve_model(name)
    assert refused.value.field == "model.path"


def test_blocks_are_what_the_kv_bytes_hold(deployment: Make, checkpoint: Path) -> None:
    size = size_up(deployment({"model.path": str(checkpoint), "memory.kv_bytes": "1MiB", "memory.block_tokens": 8}))
    block_bytes = 8 * size.kv_bytes_per_token
    assert size.blocks * block_bytes <= 2**20 < (size.blocks + 1) * block_bytes
    assert size.max_sequence_tokens == 512  # max_position_embeddings of the checkpoint


def test_the_context_shrinks_to_what_the_kv_memory_holds(deployment: Make, checkpoint: Path) -> None:
    here = {"model.path": str(checkpoint)}
    per_token = size_up(deployment(here)).kv_bytes_per_token
    size = size_up(deployment({**here, "memory.kv_bytes": 4 * 16 * per_token}))
    assert (size.blocks, size.max_sequence_tokens) == (4, 64)


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"memory.kv_bytes": 100}, "memory.kv_bytes"),
        ({"model.max_sequence_tokens": 513}, "model.max_sequence_tokens"),
        ({"model.max_sequence_tokens": 512, "memory.kv_bytes": "64Ki"}, "model.max_sequence_tokens"),
    ],
)
def test_sizes_that_contradict_the_model_are_refused_with_numbers(
    deployment: Make, checkpoint: Path, keys: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidDeployment) as refused:
        size_up(deployment({"model.path": str(checkpoint), **keys}))
    assert refused.value.field == field
    assert any(character.isdigit() for character in refused.value.why + refused.value.remedy)


def test_what_does_not_fit_into_memory_is_refused_with_what_would(
    deployment: Make, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = deployment({"model.path": str(checkpoint), "memory.kv_bytes": "512MiB"})
    monkeypatch.setattr(sizing, "available_bytes", lambda: sizing.RUNTIME_BYTES + 100 * 2**20)
    with pytest.raises(InvalidDeployment, match="are available") as refused:
        size_up(here)
    assert refused.value.remedy == "memory.kv_bytes: 99MiB or less"
    monkeypatch.setattr(sizing, "available_bytes", lambda: None)
    size_up(here)


def test_the_fingerprint_changes_with_the_weights_and_the_precision_and_not_with_the_place(
    checkpoint: Path, tmp_path: Path
) -> None:
    def of(path: Path, dtype: str = "float32", kernels: str = "native") -> str:
        return fingerprint(path, dtype=dtype, kernels=kernels)

    first = of(checkpoint)
    assert first == of(checkpoint)
    assert len({first, of(checkpoint, dtype="bfloat16"), of(checkpoint, kernels="portable")}) == 3
    other = tmp_path / "other"
    other.mkdir()
    for file in checkpoint.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert of(other) == first
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    assert of(other) != first


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_the_fingerprint_sees_a_tensor_change_that_lies_far_behind_the_start_of_the_file(
    where: str, tmp_path: Path
) -> None:
    elements = 2**20
    tensors = {"front": np.zeros(elements, np.float32), "back": np.zeros(elements, np.float32)}
    (tmp_path / "config.json").write_text("{}")
    save_file(tensors, tmp_path / "model.safetensors")
    before = fingerprint(tmp_path, dtype="float32", kernels="native")
    tensors["back"][{"first": 0, "middle": elements // 2, "last": -1}[where]] = 1
    save_file(tensors, tmp_path / "model.safetensors")
    assert fingerprint(tmp_path, dtype="float32", kernels="native") != before


def test_offline_results_come_in_the_order_of_the_requests(deployment: Make, checkpoint: Path) -> None:
    here = deployment({"model.path": str(checkpoint)})
    results = generate(here, [Request(id=id, prompt=(1, 2), max_tokens=3) for id in "zab"])
    assert [(result.id, len(result.tokens), result.finished) for result in results] == [
        ("z", 3, "length"), ("a", 3, "length"), ("b", 3, "length"),
    ]  # fmt: skip


def test_offline_a_request_that_cannot_be_run_is_refused_before_any_is(deployment: Make, checkpoint: Path) -> None:
    here = deployment({"model.path": str(checkpoint)})
    with pytest.raises(InvalidRequest, match="max_tokens"):
        generate(here, [Request(id="a", prompt=(1,), max_tokens=3), Request(id="b", prompt=(1,), max_tokens=9_999)])


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("layout", "tensor_parallel", 2), ("cluster", "replicas", 2), ("precision", "weights", "fp8")],
)
def test_what_only_the_twin_models_is_refused_and_not_passed_over(section: str, key: str, value: object) -> None:
    with pytest.raises(InvalidDeployment) as caught:
        size_up(Deployment.parse({section: {key: value}}))
    assert caught.value.field == f"{section}.{key}"
    assert "simulate" in caught.value.remedy


def test_a_file_with_a_workload_is_served_all_the_same() -> None:
    file = {
        "workload": {"rate": 3},
        "slo": {"ttft": "1s"},
        "hardware": {"name": "h100-sxm"},
        "twin": {"backend": "vllm"},
    }
    assert size_up(Deployment.parse(file)) == size_up(Deployment())
