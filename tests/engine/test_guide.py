"""Guided decoding in the engine: the text obeys its grammar whatever else goes on, and nobody else notices."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from penstock.control.policy import build_replica
from penstock.control.replica import Replica
from penstock.control.request import GUIDE_FAILED, Guide, Request, Sampling
from penstock.control.step import Failed, Finished, NewTokens, TokenLogprobs
from penstock.engine.engine import Engine
from penstock.engine.guide import grammar
from penstock.engine.guide.masks import Masks
from penstock.engine.guide.matching import Matching
from penstock.engine.loader import LoadedModel, load_model
from penstock.engine.tokenizer import Tokenizer
from penstock.errors import InvalidRequest
from penstock.runtime.local import Loop

PATH = Path(__file__).parents[2] / "src/penstock/catalog/models/millrace"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
GRAMMARS = {
    "schema": grammar.json_schema(PERSON),
    "choice": grammar.choice(["yes", "no", "perhaps\nnot"]),
    "regex": grammar.regex("[a-c]{3,9}-[0-9]{4}/x"),
    "lark": grammar.lark('start: item ("," item){1,4}\nitem: /[a-z]{2,5}/ "=" /[0-9]/'),
    "gbnf": grammar.lark('root ::= "<" word ">"\nword ::= [a-z] [a-z] [a-z]'),
}


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(PATH)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(PATH)


@dataclass
class Run:
    """What came out of one engine."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    finished: dict[str, Finished] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    logprobs: dict[str, list[TokenLogprobs]] = field(default_factory=dict)
    evictions: int = 0
    swaps: int = 0

    def follow(self, loop: Loop, steps: int = 10_000) -> None:
        for _, turn in zip(range(steps), loop.run(), strict=False):
            self.evictions += len(turn.step.evict)
            self.swaps += len(turn.step.swap_out)
            for update in turn.updates:
                match update:
                    case NewTokens():
                        for id, token in update.tokens.items():
                            self.tokens.setdefault(id, []).append(token)
                        for id, one in update.logprobs.items():
                            self.logprobs.setdefault(id, []).append(one)
                    case Finished():
                        self.finished[update.id] = update
                    case Failed():
                        self.failed[update.id] = update.why


def run(model: LoadedModel, requests: list[Request], *, blocks: int = 256, host_blocks: int = 0, **policy: Any) -> Run:
    engine = Engine(model, blocks=blocks, block_tokens=8, host_blocks=host_blocks, max_seqs=16, tokenizer_path=PATH)
    replica: Replica = build_replica(
        blocks=blocks,
        block_tokens=8,
        max_sequence_tokens=min(512, 8 * blocks),
        max_seqs=16,
        host_blocks=host_blocks,
        **policy,
    )
    loop = Loop(replica, engine, clock=lambda: 0.0)
    for request in requests:
        loop.submit(request)
    result = Run()
    result.follow(loop)
    engine.close()
    return result


def asked(
    id: str, guide: Guide | None, *, prompt: tuple[int, ...] = (5, 6, 7, 8), max_tokens: int = 150, **sampling: Any
) -> Request:
    options: dict[str, Any] = {"temperature": 0.0, "stop_ids": (0,), "guide": guide} | sampling
    return Request(id=id, prompt=prompt, max_tokens=max_tokens, sampling=Sampling(**options))


def obeys(name: str, text: str) -> bool:
    match name:
        case "schema":
            found = json.loads(text)
            return (
                list(found) == ["name", "age", "tags"] and len(found["name"]) <= 12 and 0 <= found["age"] <= 150
                and len(found["tags"]) <= 3 and set(found["tags"]) <= {"red", "green"}
            )  # fmt: skip
        case "choice":
            return text in ("yes", "no", "perhaps\nnot")
        case "regex":
            return re.fullmatch("[a-c]{3,9}-[0-9]{4}/x", text) is not None
        case "lark":
            return re.fullmatch(r"[a-z]{2,5}=[0-9](,[a-z]{2,5}=[0-9]){1,4}", text) is not None
    return re.fullmatch("<[a-z]{3}>", text) is not None


def everyone(**sampling: Any) -> list[Request]:
    """Each grammar twice: greedy, and at random."""
    requests = []
    for name, text in GRAMMARS.items():
        for seed in (0, 1):
            random = {"temperature": 1.3, "seed": seed, "top_p": 0.95} if seed else {}
            prompt = tuple(range(4, 24 + 3 * seed))
            requests.append(asked(f"{name}-{seed}", Guide(grammar=text), prompt=prompt, **(sampling | random)))
    return requests


def text_of(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return tokenizer.decode(tokens)


@pytest.fixture(scope="module")
def undisturbed(model: LoadedModel) -> Run:
    """Each alone, in one chunk, with room for all."""
    whole = Run()
    for request in everyone():
        one = run(model, [request])
        whole.tokens |= one.tokens
        whole.finished |= one.finished
        whole.failed |= one.failed
    return whole


def test_every_output_obeys_its_grammar_and_ends_with_it(undisturbed: Run, tokenizer: Tokenizer) -> None:
    assert not undisturbed.failed
    for id, tokens in undisturbed.tokens.items():
        assert undisturbed.finished[id].reason == "stop", id
        text = text_of(tokenizer, tokens)
        assert obeys(id.split("-")[0], text), text


@pytest.mark.parametrize(
    "conditions",
    [
        {},
        {"token_budget": 24},
        {"blocks": 24, "token_budget": 32},
        {"blocks": 24, "token_budget": 32, "evict": "swap", "host_blocks": 128},
    ],
    ids=["in one batch", "in chunks", "preempted and recomputed", "swapped"],
)
def test_tokens_are_the_same_whatever_else_goes_on(
    model: LoadedModel, undisturbed: Run, conditions: dict[str, Any]
) -> None:
    result = run(model, everyone(), **conditions)
    assert not result.failed
    assert result.tokens == undisturbed.tokens
    if "blocks" in conditions:
        assert result.swaps if conditions.get("evict") == "swap" else result.evictions


def test_a_sequence_goes_on_in_another_engine_at_any_token(model: LoadedModel, undisturbed: Run) -> None:
    for request in everyone()[1::3]:
        tokens = undisturbed.tokens[request.id]
        for cut in {1, len(tokens) // 2, len(tokens) - 1}:
            rest = run(model, [replace(request, output=tuple(tokens[:cut]))])
            assert tokens[:cut] + rest.tokens[request.id] == tokens


def test_neighbours_without_a_grammar_keep_their_tokens(model: LoadedModel) -> None:
    plain = [asked(f"plain-{n}", None, prompt=(9 + n, 8, 7), max_tokens=40, stop_ids=()) for n in range(3)]
    alone = run(model, plain)
    together = run(model, [*everyone()[:6], *plain])
    assert {id: together.tokens[id] for id in alone.tokens} == alone.tokens


def test_logprobs_are_the_models_own(model: LoadedModel) -> None:
    result = run(model, [asked("a", Guide(grammar=GRAMMARS["choice"]), logprobs=3)])
    assert len(result.logprobs["a"]) == len(result.tokens["a"])
    # A random continuation of these words is no "yes": what the grammar left was not what the model liked best.
    assert any(one.chosen < one.top[0][1] for one in result.logprobs["a"])


def test_without_a_stop_id_the_grammars_end_is_the_end(model: LoadedModel, tokenizer: Tokenizer) -> None:
    result = run(model, [asked("a", Guide(grammar=GRAMMARS["regex"]), stop_ids=())])
    assert obeys("regex", text_of(tokenizer, result.tokens["a"]))
    assert result.finished["a"].reason == "stop"
    assert result.finished["a"].stop_id is None


def test_min_tokens_lengthens_what_may_be_longer_and_cannot_break_the_grammar(
    model: LoadedModel, tokenizer: Tokenizer
) -> None:
    longer = run(model, [asked("a", Guide(grammar=grammar.regex("[a-z]+")), stop_ids=(2,), min_tokens=30)])
    assert len(longer.tokens["a"]) >= 30
    fixed = run(model, [asked("a", Guide(grammar=grammar.choice(["yes"])), stop_ids=(2,), min_tokens=30)])
    assert text_of(tokenizer, fixed.tokens["a"]) == "yes"
    assert not fixed.failed


def test_an_end_token_is_allowed_where_the_grammar_may_end(model: LoadedModel, tokenizer: Tokenizer) -> None:
    biased = {"stop_ids": (2,), "logit_bias": ((2, 100.0),)}
    result = run(model, [asked("a", Guide(grammar=grammar.regex("[a-z]{4}[0-9]*")), **biased)])
    assert re.fullmatch("[a-z]{4}", text_of(tokenizer, result.tokens["a"]))
    assert result.finished["a"].stop_id == 2


def test_max_tokens_cuts_the_text_short(model: LoadedModel) -> None:
    result = run(model, [asked("a", Guide(grammar=GRAMMARS["schema"]), max_tokens=3)])
    assert result.finished["a"].reason == "length"


def test_the_grammar_begins_where_the_reasoning_ends(model: LoadedModel, tokenizer: Tokenizer) -> None:
    close = tokenizer.encode("</think>", add_special_tokens=False)
    guide = Guide(grammar=grammar.after_space(GRAMMARS["schema"]), after="</think>")
    thoughts = (*tokenizer.encode("Well, let me think.", add_special_tokens=False), *close)
    result = run(model, [asked("a", guide, stop_ids=(2,)).__class__(
        id="a", prompt=(5, 6, 7), max_tokens=200, output=thoughts, sampling=Sampling(temperature=0.0, guide=guide)
    )])  # fmt: skip
    assert obeys("schema", text_of(tokenizer, result.tokens["a"]).strip())
    # Before that, all is free but an end, however much the model would like one.
    free = run(model, [asked("a", guide, stop_ids=(2,), logit_bias=((2, 100.0),), max_tokens=20)])
    assert 2 not in free.tokens["a"]
    assert free.finished["a"].reason == "length"


def test_reasoning_may_be_left_out_where_the_prompt_did_not_begin_it(model: LoadedModel, tokenizer: Tokenizer) -> None:
    # <|system|> plays the opener: a control token, which no grammar allows by itself.
    guide = Guide(grammar=GRAMMARS["choice"], after="</think>", opener="<|system|>")
    shut = run(model, [asked("a", guide, stop_ids=(2,))])
    assert obeys("choice", text_of(tokenizer, shut.tokens["a"]))
    opened = run(model, [asked("a", guide, stop_ids=(2,), logit_bias=((3, 100.0),), max_tokens=20)])
    assert opened.tokens["a"][0] == 3
    assert opened.finished["a"].reason == "length"


def test_a_grammar_that_cannot_be_compiled_fails_its_own_request_alone(model: LoadedModel) -> None:
    engine = Engine(model, blocks=64, block_tokens=8, max_seqs=4, tokenizer_path=PATH)
    with pytest.raises(InvalidRequest, match="start"):
        engine.add(asked("a", Guide(grammar=grammar.rules("nowhere: /a/"))))
    assert engine.guides.statistics() == {"grammars": 0, "guided": 0}
    engine.add(asked("a", Guide(grammar=GRAMMARS["choice"])))


def test_an_engine_without_a_tokenizer_says_so(model: LoadedModel) -> None:
    engine = Engine(model, blocks=64, block_tokens=8, max_seqs=4)
    with pytest.raises(InvalidRequest, match="no tokenizer"):
        engine.add(asked("a", Guide(grammar=GRAMMARS["choice"])))


def test_a_dead_end_fails_one_sequence_and_names_the_grammar(model: LoadedModel) -> None:
    everything = tuple((id, -100.0) for id in range(1024))
    requests = [
        # Bits of UTF-8 that the vocabulary has no way to finish would be such an end; a limit on work is another.
        asked("deep", Guide(grammar=grammar.lark('start: a\na: a a | "x" | "y" | ""')), max_tokens=40, stop_ids=(),
              logit_bias=((2, -100.0),)),
        asked("fine", Guide(grammar=GRAMMARS["regex"]), logit_bias=everything[:3]),
    ]  # fmt: skip
    result = run(model, requests)
    assert result.finished["fine"].reason == "stop"
    assert "deep" in result.finished or result.failed["deep"].startswith(GUIDE_FAILED)


def test_bans_that_leave_nothing_of_a_grammar_are_the_clients(model: LoadedModel, tokenizer: Tokenizer) -> None:
    [one] = tokenizer.encode("a", add_special_tokens=False)
    guide = Guide(grammar=grammar.regex("a"))
    result = run(model, [asked("banned", guide, stop_ids=(one,), min_tokens=3), asked("free", guide)])
    assert result.failed["banned"].startswith(GUIDE_FAILED)
    assert "no token is left" in result.failed["banned"]
    assert result.tokens["free"] == [one]


def test_a_mask_that_takes_too_long_fails_its_own_sequence() -> None:
    over = threading.Event()

    class Slow:
        ready, error = False, ""

        def fill(self) -> None:
            over.wait(60)

    class Quick:
        ready, error = False, ""

        def fill(self) -> None:
            self.ready = True

    masks = Masks(limit_s=0.5)  # for Quick, on a busy machine
    places: list[Any] = [Quick(), Slow(), Quick()]
    masks.start(places)
    masks.wait(places)
    assert [place.ready for place in places] == [True, False, True]
    assert places[1].error.startswith(GUIDE_FAILED)
    over.set()
    masks.close()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=30))
def test_a_place_follows_from_the_output_alone(steps: list[int]) -> None:
    """However the tokens were taken, replaying them stands at the same mask."""
    guides = _guides()
    request = asked("r", Guide(grammar=GRAMMARS["lark"]))
    guides.open(request)
    place = guides.place(request)
    assert isinstance(place, Matching)
    taken: list[int] = []
    for step in steps:
        place.fill()
        if place.complete or place.error:
            break
        allowed = place._allowed.nonzero()[0]
        taken.append(int(allowed[step * (len(allowed) - 1) // 3]))
        place.take(taken[-1])
    again = replace(request, id="again")
    guides.open(again)
    other = guides.place(replace(again, output=tuple(taken)))
    assert other is not None
    place.fill()
    other.fill()
    assert (place._allowed == other._allowed).all()
    assert (place.complete, place.error, place.phase) == (other.complete, other.error, other.phase)
    guides.release("r")
    guides.release("again")


def _guides() -> Any:
    global _shared
    if _shared is None:
        from penstock.engine.guide.guides import Guides

        _shared = Guides(PATH, 1024)
    return _shared


_shared: Any = None
