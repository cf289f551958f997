"""What narrow weights cost in accuracy: perplexity on held-out stories, and the logits' cosine against float32.

The model in the box, 24 documents of its training corpus's held-out tenth, each position predicted from all before it.
Prediction, written before the first run: int8 within 0.5 % of float32's perplexity, int4 within 3 %.

    python benchmarks/weight_error.py [--model DIR]

Last figures: RESULTS.md. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from penstock.catalog import resolve_model
from penstock.engine.batch import Batch
from penstock.engine.loader import LoadedModel, load_model
from penstock.engine.ops.kernels import Segments, kernels_for
from penstock.engine.ops.rope import LayerAngles
from penstock.engine.pool import KVPool
from penstock.engine.weights.formats import FORMATS

sys.path.insert(0, str(Path(__file__).parents[1]))

from recipes.millrace.corpus import long_story
from recipes.millrace.split import Split

DOCUMENTS = 24


def logits_of(model: LoadedModel, ids: list[int]) -> Tensor:
    """Of every position of one sequence, [T, V] float32."""
    count, architecture = len(ids), model.architecture
    pool = KVPool(architecture, blocks=1, block_tokens=count, host_blocks=0, dtype=model.dtype, device=model.device)
    angles = LayerAngles(architecture, count, model.device) if architecture.rope is not None else None
    kernels = kernels_for(model.device)
    first_row, lengths, zero = (torch.tensor(x, dtype=torch.int32) for x in ([0, count], [count], [0]))
    segments = Segments(first_row, lengths, zero, torch.zeros(1, 1, dtype=torch.int32), count)
    rows = torch.arange(count)
    batch = Batch(torch.tensor(ids), rows, rows, rows + 1, segments, None)
    with torch.inference_mode():
        return model.model.logits(model.model.hidden(batch, pool.device, kernels, angles), kernels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="millrace")
    path = Path(resolve_model(parser.parse_args().model))
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    random_numbers = random.Random(5)
    texts = [tokenizer.encode(long_story(random_numbers, Split.HELD_OUT, 6)).ids for _ in range(DOCUMENTS)]
    plain = [logits_of(load_model(path), ids) for ids in texts]
    rows = {}
    for dtype, form in FORMATS.items():
        if form.device not in ("", "cpu"):
            continue
        model = load_model(path, dtype=dtype)
        loss, count, cosines, same = 0.0, 0, [], 0
        for ids, wanted in zip(texts, plain, strict=True):
            got = logits_of(model, ids)
            loss += float(functional.cross_entropy(got[:-1], torch.tensor(ids[1:]), reduction="sum"))
            count += len(ids) - 1
            cosines.append(functional.cosine_similarity(got, wanted, dim=1))
            same += int((got.argmax(dim=1) == wanted.argmax(dim=1))[:-1].sum())
        cosine = torch.cat(cosines)
        rows[dtype] = {
            "perplexity": math.exp(loss / count), "cosine_mean": float(cosine.mean()),
            "cosine_least": float(cosine.min()), "same_first_choice": same / count, "tokens": count,
        }  # fmt: skip
        change = rows[dtype]["perplexity"] / rows["float32"]["perplexity"] - 1
        print(
            f"{dtype:14} perplexity {rows[dtype]['perplexity']:.4f} ({change:+.2%}), cosine {cosine.mean():.6f} "
            f"(least {cosine.min():.6f}), same first choice {same / count:.2%}"
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
