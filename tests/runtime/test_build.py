"""From names to a checkpoint, and from a checkpoint to sizes, before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from penstock.catalog import models_in_the_box, resolve_model
from penstock.control.request import Request
from penstock.deployment import Deployment
from penstock.engine import loader
from penstock.errors import InvalidDeployment, InvalidRequest, UnsupportedModel
from penstock.runtime import size as sizing
from penstock.runtime.available import available_bytes
from penstock.runtime.build import build
from penstock.runtime.fingerprint import fingerprint, hash_of_checkpoint, hash_of_model
from penstock.runtime.offline import generate
from penstock.runtime.reading import seldom
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
    # 3 layers x 2 x 2 heads x 16 wide x 4 bytes = 768 bytes a token.
    tokens = 99 * 2**20 // (768 * 16) * 16
    assert refused.value.remedy == (
        f"memory.kv_bytes: 99MiB or less, which holds a context of 512 tokens, {tokens // 512} times at once"
    )
    monkeypatch.setattr(sizing, "available_bytes", lambda: None)
    size_up(here)


def test_where_not_even_the_weights_fit_other_settings_are_named(
    deployment: Make, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remedy(**keys: Any) -> str:
        with pytest.raises(InvalidDeployment) as refused:
            size_up(deployment({"model.path": str(checkpoint), **keys}))
        return refused.value.remedy

    weights = size_up(deployment({"model.path": str(checkpoint)})).weight_bytes
    monkeypatch.setattr(sizing, "available_bytes", lambda: sizing.RUNTIME_BYTES + weights * 3 // 4)
    assert remedy().startswith("model.dtype: bfloat16")
    monkeypatch.setattr(sizing, "available_bytes", lambda: sizing.RUNTIME_BYTES + weights - 100)
    assert remedy().startswith("model.dtype: float32_compressed, which changes no result, or model.dtype: bfloat16")
    swap = {"policy.evict": "swap", "memory.host_bytes": "1GiB"}
    monkeypatch.setattr(sizing, "available_bytes", lambda: sizing.RUNTIME_BYTES + weights + 2**29)
    assert remedy(**swap) == "a smaller memory.host_bytes"
    monkeypatch.setattr(sizing, "available_bytes", lambda: sizing.RUNTIME_BYTES // 2)
    assert remedy() == "a smaller model, or a machine with more memory"


def test_what_does_not_fit_onto_a_gpu_is_refused_before_the_weights_are_loaded(
    deployment: Make, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = {"model.path": str(checkpoint), "memory.kv_bytes": "512MiB", "hardware.device": "cuda"}
    here = deployment(on_gpu | {"policy.evict": "swap", "memory.host_bytes": "8GiB"})
    size = size_up(here)
    sizing.require_device_fit(here, size, sizing.DEVICE_BYTES + 513 * 2**20)
    with pytest.raises(InvalidDeployment, match="are available") as refused:
        sizing.require_device_fit(here, size, sizing.DEVICE_BYTES + 100 * 2**20)
    assert refused.value.remedy.startswith("memory.kv_bytes: 99MiB or less")
    loaded: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**20, 80 * 2**30))
    monkeypatch.setattr(loader, "load_model", lambda *args, **kwargs: loaded.append(args))
    with pytest.raises(InvalidDeployment, match="are available"):
        build(here, lambda name, seconds, detail: None)
    assert not loaded


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


GROUP = "sys/fs/cgroup/system.slice/penstock.service"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8000 * 1024),
        ({"sys/fs/cgroup/memory.max": "max\n", "proc/self/cgroup": "0::/\n"}, 8000 * 1024),
        (
            {"proc/self/cgroup": "0::/system.slice/penstock.service\n", f"{GROUP}/memory.max": "4000000\n",
             f"{GROUP}/memory.current": "3000000\n", f"{GROUP}/memory.stat": "anon 1\ninactive_file 500000\n"},
            1_500_000,
        ),
        (
            {"proc/self/cgroup": "0::/system.slice/penstock.service\n", "sys/fs/cgroup/system.slice/memory.max": "10",
             "sys/fs/cgroup/system.slice/memory.current": "12"},
            0,
        ),
        (
            {"proc/self/cgroup": "3:cpu:/\n2:memory:/docker/1\n",
             "sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": "2000000",
             "sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes": "500000",
             "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
             "sys/fs/cgroup/memory/memory.usage_in_bytes": "1"},
            1_500_000,
        ),
    ],
)  # fmt: skip
def test_available_memory_is_what_machine_and_control_group_allow(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    assert available_bytes(machine(tmp_path, files)) == expected
    assert available_bytes(tmp_path / "nothing") is None


def test_the_fingerprint_changes_with_the_weights_and_the_precision_and_not_with_the_place(
    checkpoint: Path, tmp_path: Path
) -> None:
    def of(path: Path, dtype: str = "float32", kernels: str = "native") -> str:
        return fingerprint(hash_of_checkpoint(path), dtype=dtype, kernels=kernels)

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


def test_the_fingerprint_changes_with_each_file_that_says_how_the_weights_are_used(tmp_path: Path) -> None:
    def now() -> str:
        return fingerprint(hash_of_checkpoint(tmp_path), dtype="float32", kernels="native")

    save_file({"weight": np.zeros(4, np.float32)}, tmp_path / "model.safetensors")
    seen = {now()}
    for name in (
        "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json",
        "chat_template.jinja", "additional_chat_templates/a.jinja", "additional_chat_templates/b.jinja",
        "generation_config.json", "modules.json", "1_Pooling/config.json",
    ):  # fmt: skip
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        for content in ("{}", "[]"):
            file.write_text(content)
            assert now() not in seen, name
            seen.add(now())
    last = now()
    templates = tmp_path / "additional_chat_templates"
    (templates / "b.jinja").rename(templates / "c.jinja")
    assert now() not in seen
    (tmp_path / "README.md").write_text("of no effect")
    (templates / "c.jinja").rename(templates / "b.jinja")
    assert now() == last


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_the_fingerprint_sees_a_tensor_change_that_lies_far_behind_the_start_of_the_file(
    where: str, tmp_path: Path
) -> None:
    elements = 2**20
    tensors = {"front": np.zeros(elements, np.float32), "back": np.zeros(elements, np.float32)}
    (tmp_path / "config.json").write_text("{}")
    save_file(tensors, tmp_path / "model.safetensors")
    before = fingerprint(hash_of_checkpoint(tmp_path), dtype="float32", kernels="native")
    tensors["back"][{"first": 0, "middle": elements // 2, "last": -1}[where]] = 1
    save_file(tensors, tmp_path / "model.safetensors")
    assert fingerprint(hash_of_checkpoint(tmp_path), dtype="float32", kernels="native") != before


def test_the_hash_of_a_checkpoint_is_that_of_its_files_alone_and_needs_weights(
    checkpoint: Path, tmp_path: Path
) -> None:
    assert hash_of_model(str(checkpoint)) == hash_of_checkpoint(checkpoint)
    assert hash_of_model("llama-3-8b") is None
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    assert hash_of_model(str(tmp_path)) is None


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]", b"\x09" + b"\0" * 7 + b'{"a": {}}']
)
def test_a_damaged_header_has_no_hash(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UnsupportedModel, match="safetensors"):
        hash_of_checkpoint(tmp_path)


def test_reading_weights_is_told_up_to_all_their_bytes(checkpoint: Path) -> None:
    told: list[tuple[int, int]] = []
    loader.load_model(checkpoint, on_read=lambda done, total: told.append((done, total)))
    size, header = (checkpoint / "model.safetensors").stat().st_size, (checkpoint / "model.safetensors").read_bytes()
    assert told == sorted(told)
    assert told[-1] == (size - 8 - int.from_bytes(header[:8], "little"),) * 2


def test_what_is_told_of_reading_is_little_and_nothing_at_first() -> None:
    told: list[int] = []
    now = 0.0
    read = seldom(lambda done, total: told.append(done), lambda: now)
    for tenth in range(30):
        now = tenth / 10
        read(tenth, 30)
    assert told == [10, 15, 20, 25]


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
