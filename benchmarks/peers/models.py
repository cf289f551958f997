"""Random Llama checkpoints of a fixed seed, and the same weights in each peer's format. Kept, so made once.

    python benchmarks/peers/models.py --size S --format checkpoint|w8a8|gguf --out DIR

`checkpoint` and `w8a8` (compressed-tensors, for vLLM) need this project's development environment, `gguf` a Python with
numpy, gguf and safetensors. The formats of OpenVINO and ONNX Runtime are made by their own exporters.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path
from typing import Any

import contest

SEED = 20240


def config(size: str) -> dict[str, Any]:
    """What transformers' LlamaConfig takes."""
    shape = contest.SIZES[size]
    return shape | {
        "head_dim": shape["hidden_size"] // shape["num_attention_heads"], "max_position_embeddings": 4096,
        "tie_word_embeddings": False, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    }  # fmt: skip


def parameters(size: str) -> int:
    """Of the model, both embeddings included."""
    shape = contest.SIZES[size]
    hidden, layers, inner = shape["hidden_size"], shape["num_hidden_layers"], shape["intermediate_size"]
    head = hidden // shape["num_attention_heads"]
    keys = shape["num_key_value_heads"] * head
    layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner + 2 * hidden
    return layers * layer + 2 * shape["vocab_size"] * hidden + hidden


def checkpoint(size: str, out: Path) -> None:
    """A checkpoint as Hugging Face lays it out: random float32 weights and a tokenizer of made-up words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    model = LlamaForCausalLM(LlamaConfig(**config(size))).eval()
    model.save_pretrained(out, safe_serialization=True)
    _tokenizer(contest.SIZES[size]["vocab_size"]).save_pretrained(out)


def _tokenizer(vocab_size: int) -> Any:
    """Byte-level BPE with exactly this many entries, each of which decodes to text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    generator = random.Random(7)
    vowels = ("a", "e", "i", "o", "u", "an", "er", "is", "ou")
    syllables = [first + rest for first in "bcdfghjklmnprstvwz" for rest in vowels]
    words = ["".join(generator.choice(syllables) for _ in range(generator.randint(1, 4))) for _ in range(60000)]
    lines = [" ".join(generator.choice(words) for _ in range(12)) for _ in range(40000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(lines, trainer)
    missing = vocab_size - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<pad_{index}>" for index in range(missing)])
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>",
        chat_template=template,
    )  # fmt: skip


def w8a8(source: Path, out: Path) -> None:
    """int8 weights per output channel, activations per token at run time, the head in float32."""
    import torch
    from safetensors.torch import load_file, save_file

    out.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, out)
    tensors = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if weight.ndim == 2 and "layers." in name:
            scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-8) / 127
            tensors[name] = torch.round(weight / scale).clamp(-127, 127).to(torch.int8)
            tensors[name.replace(".weight", ".weight_scale")] = scale.float()
        else:
            tensors[name] = weight
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    made = json.loads((source / "config.json").read_text(encoding="utf-8"))
    made["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"], "weights": _quantized(dynamic=False, strategy="channel"),
                "input_activations": _quantized(dynamic=True, strategy="token"),
            }
        },
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(made, indent=1), encoding="utf-8")


def _quantized(*, dynamic: bool, strategy: str) -> dict[str, Any]:
    return {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": dynamic, "strategy": strategy}


def gguf(size: str, source: Path, out: Path) -> None:
    """float32 GGUF, by a writer of our own: the stock one refuses tokenizers it does not know."""
    import gguf as library
    import numpy as np
    from safetensors.numpy import load_file

    made = config(size)
    heads, keys, head = made["num_attention_heads"], made["num_key_value_heads"], made["head_dim"]
    writer = library.GGUFWriter(out, "llama")
    writer.add_name(size)
    writer.add_context_length(made["max_position_embeddings"])
    writer.add_embedding_length(made["hidden_size"])
    writer.add_block_count(made["num_hidden_layers"])
    writer.add_feed_forward_length(made["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(keys)
    writer.add_layer_norm_rms_eps(made["rms_norm_eps"])
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(made["vocab_size"])
    writer.add_file_type(0)
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = [""] * made["vocab_size"]
    for token, number in tokenizer["model"]["vocab"].items():
        tokens[number] = token
    for token in tokenizer["added_tokens"]:
        tokens[token["id"]] = token["content"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_token_types(
        [library.TokenType.CONTROL if number < 3 else library.TokenType.NORMAL for number in range(len(tokens))]
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    tensors = load_file(source / "model.safetensors")

    def interleaved(x: Any, count: int) -> Any:
        # Hugging Face keeps the halves that RoPE turns apart, GGUF has them in pairs.
        pairs = x.reshape(count, 2, x.shape[0] // count // 2, -1).swapaxes(1, 2)
        return np.ascontiguousarray(pairs.reshape(x.shape))

    writer.add_tensor("token_embd.weight", tensors["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", tensors["model.norm.weight"])
    writer.add_tensor("output.weight", tensors["lm_head.weight"])
    for layer in range(made["num_hidden_layers"]):
        at, to = f"model.layers.{layer}", f"blk.{layer}"
        for theirs, ours in {
            "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        }.items():  # fmt: skip
            writer.add_tensor(f"{to}.{theirs}.weight", tensors[f"{at}.{ours}.weight"])
        writer.add_tensor(f"{to}.attn_q.weight", interleaved(tensors[f"{at}.self_attn.q_proj.weight"], heads))
        writer.add_tensor(f"{to}.attn_k.weight", interleaved(tensors[f"{at}.self_attn.k_proj.weight"], keys))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=contest.SIZES, required=True)
    parser.add_argument("--format", choices=("checkpoint", "w8a8", "gguf"), required=True)
    parser.add_argument("--source", type=Path, help="the checkpoint, for the other formats")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    if asked.format == "checkpoint":
        checkpoint(asked.size, asked.out)
    elif asked.format == "w8a8":
        w8a8(asked.source, asked.out)
    else:
        gguf(asked.size, asked.source, asked.out)


if __name__ == "__main__":
    main()
