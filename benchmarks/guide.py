"""Grammars: what compiling and masks cost, and what a batch pays for guided sequences in it.

    make bench-guide

Three parts. (1) One JSON schema compiled, and the mask of every token of six documents that obey it, for the vocabulary
of the model in the box and for a made one of 128,000 words: microseconds, mean, p99 and worst. xgrammar, which was the
other candidate, stands beside llguidance where it can be imported:

    pip install --no-deps --target DIR xgrammar apache-tvm-ffi; PYTHONPATH=DIR python benchmarks/guide.py

(2) The same for grammars that were chosen to be slow: the worst mask, and how they end. (3) The model in the box, 16
sequences: CPU microseconds per token with none, half and all of them guided, A B C A B C. All times are CPU time of the
process, all its threads together, so that others on the machine do not show. Prediction,
written before the first run: a mask takes 20 us at 1,024 tokens and 50 us at 128,000 (mean), and a batch that is all
guided costs 1.1 of the CPU of one without; masks are computed beside the model, so less of it is time.

The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import llguidance
import numpy as np
import torch

from penstock.control.policy import build_replica
from penstock.control.request import Guide, Request, Sampling
from penstock.engine.engine import Engine
from penstock.engine.guide import grammar
from penstock.engine.guide.vocabulary import LIMITS, Vocabulary
from penstock.engine.loader import load_model
from penstock.engine.tokenizer import Tokenizer
from penstock.runtime.local import Loop

MODEL = Path(__file__).parents[1] / "src/penstock/catalog/models/millrace"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 5},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string"},
                "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
                "kind": {"enum": ["home", "work", "other"]},
            },
            "required": ["street", "zip", "kind"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "tags", "address"],
    "additionalProperties": False,
}
DOCUMENTS = [
    json.dumps(
        {
            "name": f"Ada Lovelace the {number}th of her name", "age": 36 + number, "tags": ["math", "engine", "poet"],
            "address": {"street": "12 St James's Square, London", "zip": "12345", "kind": "home"},
        },
        indent=indent,
    )
    for number in range(3)
    for indent in (None, 2)
]  # fmt: skip
SLOW = {
    "expression, (a|aa|aaa)*b.{500}c": grammar.regex("(a|aa|aaa)*b.{500}c"),
    "expression, two far look-backs": grammar.regex("(.*a.{200})|(.*b.{200})|(.*e.{190})"),
    "ambiguous grammar, a: a a | x | y": grammar.lark('start: a\na: a a | "x" | "y" | ""'),
    "500 optional properties": grammar.json_schema(
        {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(500)}}
    ),
    "string of 100,000 characters": grammar.json_schema({"type": "string", "maxLength": 100_000}),
}


def large_vocabulary(size: int = 128_000) -> Vocabulary:
    """Bytes, and words made of pieces of Millrace's: as many and as long as a large model's."""
    tokenizer = Tokenizer.load(MODEL)
    tokens = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
    words = [token for token in tokens if len(token) > 1 and token.strip().isalpha()]
    seen, draw = set(tokens), random.Random(0)
    while len(tokens) < size:
        word = (
            draw.choice(words)
            + draw.choice(words).strip()
            + (draw.choice(words).strip() if draw.random() < 0.3 else b"")
        )
        if word not in seen:
            seen.add(word)
            tokens.append(word)

    class Words:
        is_tokenizer_wrapper, eos_token_id, bos_token_id = True, tokenizer.eos_ids[0], None
        special_token_ids = sorted(tokenizer.special_ids)

        def __call__(self, text: str | bytes) -> list[int]:
            return []

    Words.tokens = tokens  # type: ignore[attr-defined]
    library = llguidance.LLTokenizer(Words())  # type: ignore[arg-type]
    return Vocabulary(library, size, tokens, frozenset(Words.special_token_ids), Words.eos_token_id, {})


def longest_first(text: str, tokens: list[bytes]) -> list[int]:
    ids = {token: id for id, token in enumerate(tokens) if token}
    data, at, found = text.encode(), 0, []
    while at < len(data):
        length = next(n for n in range(min(32, len(data) - at), 0, -1) if data[at : at + n] in ids)
        found.append(ids[data[at : at + length]])
        at += length
    return found


def microseconds(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "mean_us": round(mean(times) * 1e6, 1), "p50_us": round(median(times) * 1e6, 1),
        "p99_us": round(ordered[int(0.99 * (len(ordered) - 1))] * 1e6, 1), "max_us": round(ordered[-1] * 1e6, 1),
    }  # fmt: skip


def with_llguidance(vocabulary: Vocabulary) -> dict[str, Any]:
    began = time.process_time()
    first = llguidance.LLMatcher(vocabulary.library, grammar.json_schema(SCHEMA), log_level=0, limits=LIMITS)
    compile_s = time.process_time() - began
    times = []
    for document in DOCUMENTS:
        matcher = first.deep_copy()
        for token in longest_first(document, vocabulary.tokens):
            began = time.process_time()
            matcher.compute_bitmask()
            times.append(time.process_time() - began)
            assert matcher.consume_token(token), matcher.get_error()
        assert matcher.is_accepting()
    return {"compile_ms": round(compile_s * 1e3, 2), **microseconds(times)}


def with_xgrammar(vocabulary: Vocabulary) -> dict[str, Any]:
    import xgrammar  # type: ignore[import-not-found]

    info = xgrammar.TokenizerInfo(vocabulary.tokens, vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[vocabulary.eos])
    compiler = xgrammar.GrammarCompiler(info, max_threads=1)
    began = time.process_time()
    compiled = compiler.compile_json_schema(json.dumps(SCHEMA))
    compile_s = time.process_time() - began
    bits = xgrammar.allocate_token_bitmask(1, len(vocabulary.tokens))
    times = []
    for document in DOCUMENTS:
        matcher = xgrammar.GrammarMatcher(compiled)
        for token in longest_first(document, vocabulary.tokens):
            began = time.process_time()
            matcher.fill_next_token_bitmask(bits)
            times.append(time.process_time() - began)
            assert matcher.accept_token(token)
    return {"compile_ms": round(compile_s * 1e3, 2), **microseconds(times)}


def slow_masks(vocabulary: Vocabulary) -> dict[str, Any]:
    found = {}
    for name, text in SLOW.items():
        began = time.process_time()
        matcher = llguidance.LLMatcher(vocabulary.library, text, log_level=0, limits=LIMITS)
        compile_s = time.process_time() - began
        times, draw, why = [0.0], random.Random(1), ""
        while len(times) < 150 and sum(times) < 5:
            began = time.process_time()
            bits = matcher.compute_bitmask()
            times.append(time.process_time() - began)
            allowed = np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little"))
            allowed = allowed[allowed > 5]
            if matcher.is_error() or not len(allowed):
                why = matcher.get_error().split("\n")[0][:60]
                break
            matcher.consume_token(int(draw.choice(list(allowed))))
        found[name] = {
            "compile_ms": round(compile_s * 1e3, 1), "tokens": len(times) - 1, "worst_ms": round(max(times) * 1e3, 1),
            "refused": why,
        }  # fmt: skip
    return found


def cost_of_a_token(guided: int, sequences: int = 16, max_tokens: int = 120) -> tuple[float, float]:
    """(CPU microseconds per token, wall milliseconds of the median step) with `guided` of the sequences guided."""
    engine = Engine(_model(), blocks=1024, block_tokens=16, max_seqs=sequences, tokenizer_path=MODEL)
    replica = build_replica(blocks=1024, block_tokens=16, max_sequence_tokens=2048, max_seqs=sequences)
    loop = Loop(replica, engine, clock=time.monotonic)
    guide = Guide(grammar=grammar.json_schema({"type": "array", "items": SCHEMA, "minItems": 50}))
    for number in range(sequences):
        sampling = Sampling(temperature=1.0, seed=number, guide=guide if number < guided else None)
        loop.submit(Request(id=str(number), prompt=tuple(range(6, 38)), max_tokens=max_tokens, sampling=sampling))
    began, made, steps = time.process_time(), 0, []
    for turn in loop.run():
        made += len(turn.result.tokens)
        steps.append(turn.result.seconds * 1e3)
    took = time.process_time() - began
    engine.close()
    return took / made * 1e6, median(steps)


_loaded: list[Any] = []


def _model() -> Any:
    if not _loaded:
        _loaded.append(load_model(MODEL))
    return _loaded[0]


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"masks": {}, "batch": {}}
    contestants: dict[str, Callable[[Vocabulary], dict[str, Any]]] = {"llguidance": with_llguidance}
    try:
        import xgrammar  # noqa: F401

        contestants["xgrammar"] = with_xgrammar
    except ImportError:
        print("xgrammar is not here: llguidance alone")
    for size, make in ((1024, lambda: Vocabulary.load(MODEL, 1024)), (128_000, large_vocabulary)):
        began = time.process_time()
        vocabulary = make()
        read_s = time.process_time() - began
        for name, measure in contestants.items():
            row = measure(vocabulary)
            result["masks"][f"{name}, {size} tokens"] = row
            print(f"{name:10s} {size:7d} tokens  {row}")
        print(f"vocabulary of {size}: read in {read_s:.2f} s")
    result["slow"] = slow_masks(vocabulary)
    for name, row in result["slow"].items():
        print(f"{name:36s} {row}")
    for round_ in range(3):
        for guided in (0, 8, 16):
            cost_us, step_ms = cost_of_a_token(guided)
            result["batch"].setdefault(str(guided), []).append((round(cost_us, 1), round(step_ms, 2)))
            print(
                f"round {round_}: {guided:2d} of 16 guided: {cost_us:7.1f} us of CPU per token, step {step_ms:.2f} ms"
            )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
