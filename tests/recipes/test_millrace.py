"""Millrace, the model in the box: its corpus is repeatable and keeps what is held out apart, and what ships works."""

from __future__ import annotations

import itertools
import json
import random
import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # recipes/ is no part of the package

from recipes.millrace import score  # noqa: E402
from recipes.millrace.checkpoint import load, load_run, save_run  # noqa: E402
from recipes.millrace.corpus import HEROES, PLACES, make_cast  # noqa: E402
from recipes.millrace.model import Millrace, Shape  # noqa: E402
from recipes.millrace.skills import COLOURS, THINGS  # noqa: E402
from recipes.millrace.split import Split, is_held_out  # noqa: E402
from recipes.millrace.stream import batch, documents  # noqa: E402
from recipes.millrace.tokenizer import SPECIALS, VOCABULARY, render  # noqa: E402
from recipes.millrace.train import make_optimizers  # noqa: E402

SHIPPED = ROOT / "src/penstock/catalog/models/millrace"
FLOORS = {"addition": 0.9, "recall": 0.75, "copying": 0.35, "manners": 0.8}
"""Below the figures of the model card by what a small sample may miss."""
SUM = re.compile(r"\b(\d+) \+ (\d+) = (\d+)")
DIFFERENCE = re.compile(r"\b(\d+) - (\d+) = (\d+)")


@pytest.fixture(scope="module")
def shipped():
    return load(SHIPPED)


def some_documents(seed: str, split: Split, count: int) -> list[str]:
    return list(itertools.islice(documents(seed, split), count))


def test_the_same_seed_gives_the_same_documents_and_another_seed_others() -> None:
    assert some_documents("a", Split.TRAIN, 50) == some_documents("a", Split.TRAIN, 50)
    assert some_documents("a", Split.TRAIN, 50) != some_documents("b", Split.TRAIN, 50)


def test_a_batch_is_a_function_of_its_number(shipped) -> None:
    _, tokenizer = shipped
    third, weights = batch(tokenizer, seed=7, step=3)
    batch(tokenizer, seed=7, step=4)
    assert third.shape == (32, 257)
    assert torch.equal(third, batch(tokenizer, seed=7, step=3)[0])
    assert weights.shape == third.shape


def test_held_out_sums_never_appear_in_training_text_and_no_others_in_held_out_text() -> None:
    for split in Split:
        text = "\n".join(some_documents("sums", split, 3000))
        pairs = [(int(a), int(b)) for a, b, _ in SUM.findall(text)] + [
            (int(b), int(c)) for _, b, c in DIFFERENCE.findall(text)
        ]
        assert len(pairs) > 1000
        assert {is_held_out("sum", min(pair), max(pair)) for pair in pairs} == {split is Split.HELD_OUT}


def test_every_sum_in_the_corpus_is_right() -> None:
    text = "\n".join(some_documents("right", Split.TRAIN, 1000))
    assert all(int(a) + int(b) == int(c) for a, b, c in SUM.findall(text))
    assert all(int(a) - int(b) == int(c) for a, b, c in DIFFERENCE.findall(text))


def test_held_out_keys_and_casts_stay_out_of_training_text() -> None:
    text = "\n".join(some_documents("keys", Split.TRAIN, 3000))
    keys = {f"the {colour} {thing} is" for colour in COLOURS for thing in THINGS if is_held_out("key", colour, thing)}
    assert keys
    assert not [key for key in keys if key in text.lower()]
    told = [make_cast(random.Random(seed), Split.TRAIN, "mill") for seed in range(500)]
    assert not any(is_held_out("cast", cast["hero"], cast["place"]) for cast in told)
    assert any(is_held_out("cast", hero, place) for hero, _ in HEROES for place in PLACES)


def test_the_shipped_files_are_small_and_describe_a_llama(shipped) -> None:
    model, tokenizer = shipped
    assert (SHIPPED / "model.safetensors").stat().st_size <= 12_000_000
    config = json.loads((SHIPPED / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert Shape.of(config) == Shape() == model.shape
    assert sum(parameter.numel() for parameter in model.parameters()) == Shape().parameters()
    assert tokenizer.get_vocab_size() == VOCABULARY == config["vocab_size"]
    assert [tokenizer.token_to_id(token) for token in SPECIALS] == list(range(len(SPECIALS)))
    end = json.loads((SHIPPED / "generation_config.json").read_text())["eos_token_id"]
    assert end == [tokenizer.token_to_id("<|end|>")] == [config["eos_token_id"]]


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_survives_the_tokenizer(shipped, text: str) -> None:
    _, tokenizer = shipped
    if any(special in text for special in SPECIALS):
        return
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


def test_every_digit_is_a_token_of_its_own(shipped) -> None:
    _, tokenizer = shipped
    assert tokenizer.encode("4821", add_special_tokens=False).tokens == ["4", "8", "2", "1"]


def test_the_chat_template_says_what_training_saw() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(SHIPPED)
    turns = [("system", "Answer briefly."), ("user", "Hello!"), ("assistant", "Good day!"), ("user", "Who are you?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == render(turns) + "<|assistant|>"


def test_transformers_computes_the_same_logits(shipped) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    ours, _ = load(SHIPPED, dtype=torch.float32)
    tokens = torch.randint(0, VOCABULARY, (2, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)


def test_a_run_resumes_with_its_weights_and_moments(tmp_path: Path) -> None:
    shape = Shape(vocab=32, width=32, layers=1, heads=2, kv_heads=1, feed_forward=32)

    def step(model: Millrace, optimizers: list[torch.optim.Optimizer], number: int) -> None:
        tokens = torch.randint(0, 32, (2, 16), generator=torch.Generator().manual_seed(number))
        torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    whole = Millrace(shape)
    optimizers = make_optimizers(whole)
    step(whole, optimizers, 0)
    save_run(tmp_path, 1, 2.5, whole, optimizers)
    step(whole, optimizers, 1)

    resumed = Millrace(shape)
    again = make_optimizers(resumed)
    assert load_run(tmp_path, resumed, again) == (1, 2.5)
    step(resumed, again, 1)
    for expected, got in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, got)


def test_what_ships_reaches_its_floors() -> None:
    model, tokenizer = load(SHIPPED, dtype=torch.float32)  # the same weights; most CPUs are slow in bfloat16
    rng = random.Random(0)
    assert score.sums(model, tokenizer, rng, 50, "What is {a} + {b}?") >= FLOORS["addition"]
    assert score.recall(model, tokenizer, rng, 25, distance=256) >= FLOORS["recall"]
    assert score.copying(model, tokenizer, rng, 25) >= FLOORS["copying"]
    assert min(score.manners(model, tokenizer, rng, 10).values()) >= FLOORS["manners"]
