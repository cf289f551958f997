"""What a checkpoint can do on held-out questions: python -m recipes.millrace.score DIR. A table, then one line of JSON.

Decoding is greedy. An answer is right if the whole reply is right, token by token. Sums, keys and story casts
are from the held-out tenth (see `split`), so none of them was in the training stream.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from recipes.millrace.checkpoint import load
from recipes.millrace.corpus import fill, sentences
from recipes.millrace.dialogues import ABILITIES, CAN, GREETINGS, IDENTITY, UNKNOWN, UNKNOWN_ASKS, WHO, one_of
from recipes.millrace.model import Millrace
from recipes.millrace.skills import capital, facts, operands, phrase
from recipes.millrace.split import Split
from recipes.millrace.stream import documents
from recipes.millrace.tokenizer import ASSISTANT, BEGIN, END, USER

GREETING_OPENINGS = ("Hello", "Good day")
REFUSAL_CORE = "is beyond me. I only know rivers, mills and machines"


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@torch.no_grad()
def complete(
    model: Millrace, tokenizer: Tokenizer, prompts: Sequence[list[int]], most: int, rows: int = 25
) -> list[str]:
    """The greedy continuation of each prompt up to <|end|>, at most so many tokens.

    Rows are padded on the right: attention is causal, so what stands after a row's last token cannot be seen from it.
    """
    end = tokenizer.token_to_id(END)
    replies: list[str] = []
    for start in range(0, len(prompts), rows):
        texts = [list(prompt) for prompt in prompts[start : start + rows]]
        before = [len(text) for text in texts]
        alive = set(range(len(texts)))
        for _ in range(most):
            batch = sorted(alive)
            longest = max(len(texts[row]) for row in batch)
            tokens = torch.tensor([texts[row] + [end] * (longest - len(texts[row])) for row in batch])
            last = torch.tensor([len(texts[row]) - 1 for row in batch])
            chosen = model(tokens)[torch.arange(len(batch)), last].argmax(dim=-1).tolist()
            for row, token in zip(batch, chosen, strict=True):
                if token == end:
                    alive.discard(row)
                else:
                    texts[row].append(token)
            if not alive:
                break
        replies += [tokenizer.decode(text[cut:]) for text, cut in zip(texts, before, strict=True)]
    return replies


def chat_prompt(text: str) -> str:
    return f"{BEGIN}{USER}{text}{END}{ASSISTANT}"


@torch.no_grad()
def greedy_is(
    model: Millrace, tokenizer: Tokenizer, cases: Sequence[tuple[list[int], str]], then: str = END, rows: int = 25
) -> float:
    """The share of (prompt, reply) whose greedy continuation is that reply, followed by `then` or, if empty, no digit.

    One pass instead of one per token: greedy decoding gives the reply exactly if, with the reply in place, every one of
    its tokens is the likeliest at its position.
    """
    digits = [tokenizer.token_to_id(digit) for digit in "0123456789"]
    right = 0
    for start in range(0, len(cases), rows):
        group = [(prompt, ids_of(tokenizer, reply + then)) for prompt, reply in cases[start : start + rows]]
        longest = max(len(prompt) + len(reply) for prompt, reply in group)
        padded = [prompt + reply + [0] * (longest - len(prompt) - len(reply)) for prompt, reply in group]
        chosen_BL = model(torch.tensor(padded)).argmax(dim=-1)
        for row, (prompt, reply) in enumerate(group):
            chosen = chosen_BL[row, len(prompt) - 1 :].tolist()
            right += chosen[: len(reply)] == reply and (bool(then) or chosen[len(reply)] not in digits)
    return right / len(cases)


def sums(model: Millrace, tokenizer: Tokenizer, rng: random.Random, count: int, template: str) -> float:
    """Held-out pairs of two-digit numbers, asked in chat ("What is {a} + {b}?") or as plain text ("{a} + {b} =")."""
    plain = template.endswith("=")
    cases: list[tuple[list[int], str]] = []
    while len(cases) < count:
        a, b = operands(rng, Split.HELD_OUT)
        if min(a, b) < 10:
            continue
        text = template.format(a=a, b=b)
        prompt = f"{BEGIN}{text}" if plain else chat_prompt(text)
        cases.append((ids_of(tokenizer, prompt), f" {a + b}" if plain else f"{a} + {b} = {a + b}."))
    return greedy_is(model, tokenizer, cases, then="" if plain else END)


def recall(
    model: Millrace, tokenizer: Tokenizer, rng: random.Random, count: int, distance: int, facts_told: int = 4
) -> float:
    """Facts told, then story, then a question about the first fact, `distance` tokens after its value.

    Keys are held out; the story between is cut to the token, so that the distance is exact.
    """
    cases: list[tuple[list[int], str]] = []
    while len(cases) < count:
        first, *others = facts(rng, Split.HELD_OUT, facts_told)
        head = ids_of(tokenizer, f"{BEGIN}{USER}Remember: {first.thing} is {first.value}")
        rest = ids_of(tokenizer, ". " + " ".join(capital(f"{fact.thing} is {fact.value}.") for fact in others))
        story = ids_of(tokenizer, " " + " ".join(sentences(rng, Split.HELD_OUT, 10 + distance // 8)))
        tail = ids_of(tokenizer, f" What is {first.thing}?{END}{ASSISTANT}")
        room = distance - len(rest) - len(tail)
        if room >= 0:
            cases.append((head + rest + story[:room] + tail, capital(f"{first.thing} is {first.value}.")))
    return greedy_is(model, tokenizer, cases, rows=max(1, 8192 // (distance + 64)))


def copying(model: Millrace, tokenizer: Tokenizer, rng: random.Random, count: int) -> float:
    texts = [phrase(rng, 12) for _ in range(count)]
    return greedy_is(model, tokenizer, [(ids_of(tokenizer, chat_prompt(f"Repeat: {text}")), text) for text in texts])


def manners(model: Millrace, tokenizer: Tokenizer, rng: random.Random, count: int) -> dict[str, float]:
    """Does it greet, say who it is, and decline what it does not know?"""
    kinds: dict[str, tuple[Callable[[], str], Callable[[str], bool]]] = {
        "greets": (lambda: one_of(rng, GREETINGS), lambda reply: reply.startswith(GREETING_OPENINGS)),
        "says_who_it_is": (lambda: one_of(rng, WHO), lambda reply: reply == IDENTITY),
        "says_what_it_can_do": (lambda: one_of(rng, CAN), lambda reply: reply == ABILITIES),
        "declines": (
            lambda: one_of(rng, UNKNOWN_ASKS, fill(rng, rng.choice(UNKNOWN))),
            lambda reply: REFUSAL_CORE in reply,
        ),
    }
    found = {}
    for name, (make, right) in kinds.items():
        prompts = [ids_of(tokenizer, chat_prompt(make())) for _ in range(count)]
        found[name] = sum(map(right, complete(model, tokenizer, prompts, most=50))) / count
    return found


@torch.no_grad()
def losses(model: Millrace, rows: Tensor) -> Tensor:
    """Nats per token of each row of [rows, length + 1] at each position."""
    out = []
    for row in torch.split(rows, 2):
        logits = model(row[:, :-1]).float()
        out.append(functional.cross_entropy(logits.transpose(1, 2), row[:, 1:], reduction="none"))
    return torch.cat(out)


def held_out_rows(tokenizer: Tokenizer, seed: str, rows: int, length: int) -> tuple[Tensor, float]:
    """Packed held-out documents as [rows, length + 1], and how many bytes of text one token stands for."""
    ids: list[int] = []
    size = 0
    for text in documents(f"score/{seed}", Split.HELD_OUT):
        ids += ids_of(tokenizer, text)
        size += len(text.encode())
        if len(ids) >= rows * (length + 1):
            break
    bytes_per_token = size / len(ids)
    return torch.tensor(ids[: rows * (length + 1)]).view(rows, length + 1), bytes_per_token


def score(directory: Path, seed: int = 0, count: int = 200) -> dict[str, object]:
    """All scores of an exported model; `count` questions of each kind."""
    model, tokenizer = load(directory)
    rng = random.Random(f"score/{seed}")
    short, bytes_per_token = held_out_rows(tokenizer, f"{seed}/short", max(4, count // 2), 512)
    long, _ = held_out_rows(tokenizer, f"{seed}/long", max(2, count // 8), model.shape.context)
    nats = losses(model, short).mean().item()
    by_position = losses(model, long).view(len(long), -1, 256).mean(dim=(0, 2))
    return {
        "parameters": model.shape.parameters(),
        "questions_each": count,
        "addition_chat": sums(model, tokenizer, rng, count, "What is {a} + {b}?"),
        "addition_plain": sums(model, tokenizer, rng, count, "{a} + {b} ="),
        "recall_64": recall(model, tokenizer, rng, count, 64, facts_told=2),
        "recall_256": recall(model, tokenizer, rng, count, 256),
        "recall_512": recall(model, tokenizer, rng, max(20, count // 4), 512),
        "recall_1024": recall(model, tokenizer, rng, max(20, count // 8), 1024),
        "copying": copying(model, tokenizer, rng, count),
        **manners(model, tokenizer, rng, max(20, count // 4)),
        "perplexity_per_token": math.exp(nats),
        "bits_per_byte": nats / math.log(2) / bytes_per_token,
        "perplexity_by_position": {
            f"{256 * i}-{256 * (i + 1)}": round(value.exp().item(), 3) for i, value in enumerate(by_position)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Score a Millrace checkpoint on held-out questions.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--count", type=int, default=200, help="questions of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    started = time.monotonic()
    result = score(given.directory, given.seed, given.count)
    table = Table("score", "value")
    for name, value in result.items():
        if isinstance(value, dict):
            for place, number in value.items():
                table.add_row(f"{name} {place}", f"{number:.3f}")
        else:
            table.add_row(name, f"{value:.3f}" if isinstance(value, float) else f"{value:,}")
    Console(file=sys.stderr).print(table)
    print(json.dumps(result | {"seconds": round(time.monotonic() - started, 1)}))


if __name__ == "__main__":
    main()
