"""Tiny tokenizers of the kinds that models use, trained on the spot, and checkpoint directories around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "The gate of the penstock decides how much water flows, and when it flows.",
    "def flow(gate: float) -> float:\n    return 0.5 * gate  # cubic metres per second\n",
    "Schöne Grüße aus Köln! Wasser fließt über die Brücke, 12345 Liter.",
    "水は流れる。 水门决定水流。 ünïcödé ßtraße 🙂🙂 naïve café",
    "the the the water water water gate gate flows flows and and and it it it user system end",
] * 4

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def byte_level(specials: list[str], *, size: int = 400, bos: str | None = None) -> Tokenizer:
    """Like GPT-2, Llama 3, Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def byte_fallback(specials: tuple[str, ...] = (), *, size: int = 460) -> Tokenizer:
    """Like Llama 2 and Mistral: sentencepiece BPE whose control tokens are ordinary entries of the vocabulary."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    named = ["<unk>", "<s>", "</s>", *specials]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*named, *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=60,
        show_progress=False,
    )
    trained.train_from_iterator(TEXTS, trainer)
    content = json.loads(trained.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in named]
    content["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def metaspace(specials: tuple[str, ...] = ()) -> Tokenizer:
    """Unigram with a Metaspace decoder: a vocabulary that would find control tokens in plain text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>", *specials],
        unk_token="<unk>",
        initial_alphabet=sorted(set("".join(TEXTS)) - {" "}),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def save(tokenizer: Tokenizer, directory: Path, *, plain: tuple[str, ...] = (), **config: Any) -> Path:
    """Write tokenizer.json and tokenizer_config.json; `plain` are added tokens that are not special."""
    tokenizer.add_tokens([AddedToken(content, normalized=False) for content in plain])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory
