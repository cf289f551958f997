"""Adapters at the engine's door: each family's places, what is refused and how, room, and rows that have none.

That a batch of several equals their merged models whatever the schedule did is in tests/contracts/test_exactness.py.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from engine_driver import Driver, reference
from safetensors.torch import load_file, save_file

from penstock.control.request import Request, Sampling
from penstock.control.step import Step
from penstock.engine.architecture import read_architecture
from penstock.engine.engine import Engine
from penstock.engine.loader import load_model
from penstock.engine.lora.adapter import adapter_elements_bound, plan_adapter
from penstock.engine.lora.targets import adapter_elements
from penstock.errors import InvalidRequest, UnsupportedAdapter
from penstock.testing.adapters import merged_checkpoint, tiny_adapter

PROMPT = [17, 5, 201, 33, 90, 8, 77]
TOKENS = 12
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FAMILIES = {
    "llama": (*ATTENTION, "gate_proj", "up_proj", "down_proj"),
    "gemma2": ("q_proj", "o_proj", "up_proj"),
    "gemma3": (*ATTENTION, "gate_proj", "down_proj"),
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "qwen3_moe": ATTENTION,
    "gpt2": ("c_attn", "c_proj", "c_fc"),
}


def greedy(engine, adapters, prompt=PROMPT):
    """Output of one request per adapter, all in one batch; '' is the model itself."""
    driver = Driver(engine, 64, 8)
    step = Step(0)
    for number, adapter in enumerate(adapters):
        name = f"{number}"
        request = Request(
            id=name, prompt=tuple(prompt), max_tokens=TOKENS, adapter=adapter, sampling=Sampling(temperature=0.0)
        )
        engine.add(request)
        driver.requests[name], driver.output[name] = request, []
        driver.admit(step, name)
        driver.chunk(step, name)
    driver.run(step)
    step = Step(0)
    for number in range(len(adapters)):
        driver.join(step, str(number))
    driver.decode(step)
    driver.run(step)
    driver.decode_until_done()
    return [driver.output[str(number)] for number in range(len(adapters))]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_place_of_a_family_equals_the_merged_model(family, checkpoint, tmp_path):
    base = checkpoint(family)
    adapter = tiny_adapter(base, tmp_path / "adapter", target_modules=FAMILIES[family])
    merged = merged_checkpoint(base, adapter, tmp_path / "merged")
    engine = Engine.load(base, blocks=64, block_tokens=8, max_seqs=4, max_adapters=1)
    assert engine.load_adapter("a", adapter).rank == 4
    plain, tuned, again = greedy(engine, ["", "a", ""])
    assert plain == again == reference(base, [PROMPT], TOKENS)[0]
    assert tuned == reference(merged, [PROMPT], TOKENS)[0]
    assert tuned != plain


def test_rows_without_an_adapter_keep_every_bit(checkpoint, adapter):
    """Logits of a request are the same bits beside one with an adapter as beside one without."""
    model = load_model(checkpoint("llama"))
    seen = []
    for other in ("", "a"):
        engine = Engine(model, blocks=64, block_tokens=8, max_seqs=4, max_adapters=1)
        engine.load_adapter("a", adapter())
        driver = Driver(engine, 64, 8)
        step = Step(0)
        everything = Sampling(temperature=0.0, logprobs=255)
        for name, which in (("mine", ""), ("other", other)):
            request = Request(id=name, prompt=tuple(PROMPT), max_tokens=4, adapter=which, sampling=everything)
            engine.add(request)
            driver.requests[name], driver.output[name] = request, []
            driver.admit(step, name)
            driver.chunk(step, name)
        seen.append(driver.run(step).logprobs)
    assert seen[0]["mine"] == seen[1]["mine"]
    assert seen[0]["other"] != seen[1]["other"]


def test_a_step_without_adapters_has_no_work_for_them(checkpoint, adapter):
    engine = Engine.load(checkpoint("llama"), blocks=64, block_tokens=8, max_seqs=4, max_adapters=2)
    assert engine.adapters.of_rows(np.array([-1, -1])) is None
    engine.load_adapter("a", adapter())
    assert engine.adapters.of_rows(np.array([-1, -1])) is None
    only = engine.adapters.of_rows(np.array([0, 0]))
    assert [rows for _, rows in only.segments] == [None]
    mixed = engine.adapters.of_rows(np.array([-1, 0, -1, 0]))
    assert [rows.tolist() for _, rows in mixed.segments] == [[1, 3]]


def test_bfloat16_runs_with_adapters(checkpoint, adapter):
    engine = Engine.load(checkpoint("llama"), dtype="bfloat16", blocks=64, block_tokens=8, max_seqs=4, max_adapters=1)
    engine.load_adapter("a", adapter())
    plain, tuned = greedy(engine, ["", "a"])
    assert len(plain) == len(tuned) == TOKENS
    assert plain != tuned


def test_room_rank_names_and_files_are_checked(checkpoint, adapter, tmp_path):
    engine = Engine.load(checkpoint("llama"), blocks=64, block_tokens=8, max_seqs=4, max_adapters=2, max_rank=8)
    first = engine.load_adapter("a", adapter(r=8))
    with pytest.raises(UnsupportedAdapter, match="unload it first"):
        engine.load_adapter("a", adapter())
    with pytest.raises(UnsupportedAdapter, match="max_rank: 9"):
        engine.load_adapter("b", adapter(r=9))
    with pytest.raises(UnsupportedAdapter, match="changed"):
        engine.load_adapter("b", adapter(), digest=first.digest)
    engine.load_adapter("b", adapter())
    with pytest.raises(UnsupportedAdapter, match="room for 2"):
        engine.load_adapter("c", adapter())
    with pytest.raises(InvalidRequest, match="not loaded"):
        engine.add(Request(id="x", prompt=(1,), max_tokens=1, adapter="nobody"))
    assert engine.statistics()["sequences"] == 0
    engine.add(Request(id="y", prompt=(1,), max_tokens=1, adapter="b"))
    assert not engine.unload_adapter("b")
    engine.run(Step(1, release=["y"]))
    assert engine.unload_adapter("b")
    assert engine.unload_adapter("b"), "what is gone is gone"
    engine.load_adapter("c", adapter())


def test_the_bound_on_memory_is_that_of_the_files_and_of_the_rest_of_the_room(checkpoint, adapter):
    base = checkpoint("llama")
    architecture = read_architecture(base)
    path = adapter(r=4)
    plan = plan_adapter(path, architecture)
    held = sum(tensor.numel() for tensor in load_file(path / "adapter_model.safetensors").values())
    assert plan.elements == held == adapter_elements(architecture, 4)
    assert adapter_elements_bound(base, [path], room=8, max_rank=16, more=False) == held
    rest = 7 * adapter_elements(architecture, 16)
    assert adapter_elements_bound(base, [path], room=8, max_rank=16, more=True) == held + rest


@pytest.fixture
def adapter(checkpoint, tmp_path):
    """adapter(**config): a directory that a test may damage."""
    made = iter(range(100))

    def make(family="llama", **config):
        return tiny_adapter(checkpoint(family), tmp_path / f"adapter{next(made)}", **config)

    return make


def edit(path, **changes):
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "only LoRA"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save.*not implemented"),
        ({"use_dora": True}, "DoRA"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"alpha_pattern": {"q_proj": "16"}}, "alpha_pattern.q_proj"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern"),
        ({"alpha_pattern": {"(a+)+b": 3}}, "regular expression"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(changes, words, checkpoint, adapter):
    path = adapter()
    edit(path, **changes)
    with pytest.raises(UnsupportedAdapter, match=words):
        plan_adapter(path, read_architecture(checkpoint("llama")))


def test_adapters_of_another_model_or_on_other_modules_are_refused(checkpoint, adapter):
    architecture = read_architecture(checkpoint("llama"))
    with pytest.raises(UnsupportedAdapter, match=r"target_modules.*q_proj"):
        plan_adapter(adapter(target_modules=("lm_head", "q_proj")), architecture)
    with pytest.raises(UnsupportedAdapter, match="trained on this model"):
        plan_adapter(adapter(), read_architecture(checkpoint("llama", intermediate_size=80)))


def test_damaged_and_pickled_files_are_refused(checkpoint, adapter, tmp_path):
    architecture = read_architecture(checkpoint("llama"))
    path = adapter()
    weights = path / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    save_file({other: tensor for other, tensor in tensors.items() if other != name}, weights)
    with pytest.raises(UnsupportedAdapter, match="matrices is missing"):
        plan_adapter(path, architecture)
    save_file({**tensors, name: torch.zeros(3, 3)}, weights)
    with pytest.raises(UnsupportedAdapter, match="this model has a matrix"):
        plan_adapter(path, architecture)
    weights.write_bytes(b"x" * 50)
    with pytest.raises(UnsupportedAdapter, match="header"):
        plan_adapter(path, architecture)
    weights.rename(path / "adapter_model.bin")
    with pytest.raises(UnsupportedAdapter, match="pickle"):
        plan_adapter(path, architecture)
    with pytest.raises(UnsupportedAdapter, match=r"adapter_config\.json"):
        plan_adapter(tmp_path, architecture)


def test_the_factor_follows_alpha_its_pattern_and_rank_stabilisation(checkpoint, adapter, tmp_path):
    base = checkpoint("llama")
    path = adapter(r=4, lora_alpha=6, alpha_pattern={"q_proj": 1}, use_rslora=True)
    merged = merged_checkpoint(base, path, tmp_path / "merged")
    engine = Engine.load(base, blocks=64, block_tokens=8, max_seqs=4, max_adapters=1)
    engine.load_adapter("a", path)
    assert greedy(engine, ["a"])[0] == reference(merged, [PROMPT], TOKENS)[0]
