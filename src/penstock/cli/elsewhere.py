"""Flags of other servers, each with the keys that do the same here: the tables of docs/migration.md, and the error that
whoever types one of them gets.

Checked against vLLM 0.32.0, SGLang's server_args.py at commit 001067f and the help of llama-server 0.5.0-dev (commit
0c1e570), all of autumn 2026.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

PROGRAMS: Final = ("vLLM", "SGLang", "llama-server")
VERBS: Final = ("serve", "simulate")


@dataclass(frozen=True, slots=True)
class Row:
    """One setting. The first three are flags of PROGRAMS, separated by blanks."""

    vllm: str
    sglang: str
    llama: str
    keys: tuple[str, ...]
    """Of the deployment file; none: there is nothing to set."""
    note: str = ""

    @property
    def flags(self) -> tuple[tuple[str, ...], ...]:
        """Of each of PROGRAMS."""
        return tuple(tuple(cell.split()) for cell in (self.vllm, self.sglang, self.llama))


SIMULATED: Final = "simulated only: one device serves"
DOWNLOADED: Final = "nothing is downloaded: a directory is given"

MODEL: Final = (
    Row("--model", "--model-path --model", "--model -m", ("model.path",),
        "a directory in Hugging Face layout; GGUF is not read"),
    Row("--served-model-name", "--served-model-name", "--alias -a", ("model.name",), "one name"),
    Row("--max-model-len", "--context-length", "--ctx-size -c", ("model.max_sequence_tokens",),
        "of each sequence; llama-server's is shared by its slots"),
    Row("--dtype", "--dtype", "", ("model.dtype",), "float32 unless given; there is no float16"),
    Row("--quantization", "--quantization", "", ("model.dtype",), "int8, int8_weights, int4 or fp8, made at load from "
        "whole weights; AWQ, GPTQ and other quantized checkpoints are refused"),
    Row("--kv-cache-dtype", "--kv-cache-dtype", "--cache-type-k --cache-type-v", ("model.dtype",),
        "KV follows it; in a simulation precision.kv says it apart"),
    Row("--tokenizer", "--tokenizer-path", "", (), "the checkpoint's own"),
    Row("--chat-template", "--chat-template", "--chat-template --chat-template-file", (),
        "chat_template.jinja in the checkpoint"),
    Row("--override-generation-config", "", "--temp --top-k --top-p --min-p", (), "generation_config.json in the "
        "checkpoint; without one 1, all, 1, 0, where llama-server has 0.8, 40, 0.95, 0.05"),
    Row("--trust-remote-code", "--trust-remote-code", "", (), "no code of a checkpoint is ever run"),
    Row("--revision --download-dir --hf-token", "--revision", "--hf-repo --hf-file --model-url", (), DOWNLOADED),
    Row("--pooler-config", "--is-embedding", "--embeddings --embedding --pooling", ("model.pooling", "model.normalize"),
        "not needed where the checkpoint says it"),
)  # fmt: skip
DEVICES: Final = (
    Row("", "--device", "--gpu-layers --n-gpu-layers -ngl", ("hardware.device",), "cpu or cuda, the whole model"),
    Row("", "", "--threads -t", ("hardware.threads",), "vLLM: VLLM_CPU_OMP_THREADS_BIND"),
    Row("--tensor-parallel-size -tp", "--tp-size --tensor-parallel-size", "--tensor-split", ("layout.tensor_parallel",),
        SIMULATED),
    Row("--pipeline-parallel-size", "--pp-size --pipeline-parallel-size", "--split-mode", ("layout.pipeline_parallel",),
        SIMULATED),
    Row("--data-parallel-size -dp", "--dp-size --data-parallel-size", "", ("cluster.replicas", "layout.attention_dp"),
        "simulated only: replicas, or ranks of one replica that share its experts"),
    Row("--enable-expert-parallel", "--ep-size --expert-parallel-size", "", ("layout.expert_parallel",), SIMULATED),
    Row("--cpu-offload-gb", "--cpu-offload-gb", "--cpu-moe --n-cpu-moe", (), "weights lie on the one device"),
    Row("--enforce-eager", "--disable-cuda-graph", "", (), "graphs are taken where they can be"),
)  # fmt: skip
MEMORY: Final = (
    Row("--gpu-memory-utilization", "--mem-fraction-static", "", ("memory.kv_bytes",), "in bytes, and 256 MiB unless "
        "given; a simulation of a GPU sizes it as vLLM does, by memory.device_share"),
    Row("--kv-cache-memory-bytes", "--max-total-tokens", "", ("memory.kv_bytes",),
        "vLLM on CPUs: VLLM_CPU_KVCACHE_SPACE"),
    Row("--block-size", "--page-size", "", ("memory.block_tokens",)),
    Row("--enable-prefix-caching --no-enable-prefix-caching", "--disable-radix-cache",
        "--cache-prompt --no-cache-prompt", ("memory.kind",), "prefix_tree, the default, or paged"),
    Row("", "--radix-eviction-policy", "", ("memory.evict_idle",), "fair between tenants, or lru"),
    Row("--kv-offloading-size", "--hicache-size", "--cache-ram", ("policy.evict", "memory.host_bytes"),
        "swap: requests that give way; cached prefixes stay on the device"),
    Row("--watermark", "", "", ("memory.watermark",)),
)  # fmt: skip
SCHEDULE: Final = (
    Row("--max-num-seqs", "--max-running-requests", "--parallel -np", ("policy.max_seqs",)),
    Row("--max-num-batched-tokens", "--chunked-prefill-size --max-prefill-tokens", "--batch-size --ubatch-size -b -ub",
        ("policy.token_budget",), "of one step, decodes included"),
    Row("--enable-chunked-prefill --no-enable-chunked-prefill", "--enable-mixed-chunk", "", ("policy.name",),
        "sarathi, the default, cuts prompts beside decodes; vllm_prefill_first does not"),
    Row("--scheduling-policy", "--schedule-policy --enable-priority-scheduling", "", ("policy.order",),
        "of priorities the lower goes first, as in vLLM and other than in SGLang"),
    Row("--max-num-queued-reqs", "--max-queued-requests", "", ("server.queue.max_requests",), "never without a bound"),
    Row("--max-num-queued-tokens", "", "", ("server.queue.max_prompt_tokens",), "never without a bound"),
    Row("--async-scheduling --no-async-scheduling", "--disable-overlap-schedule", "", ("policy.plan_ahead",)),
    Row("--scheduler-cls", "", "", (), "a part of your own: docs/extending.md"),
    Row("--speculative-config", "--speculative-algorithm", "--model-draft", (), "there is no speculative decoding"),
)  # fmt: skip
SERVER: Final = (
    Row("--host", "--host", "--host", ("server.host",),
        "loopback, as in SGLang and llama-server; vLLM listens everywhere"),
    Row("--port", "--port", "--port", ("server.port",), "8000, as vLLM"),
    Row("--api-key", "--api-key", "--api-key", ("server.api_keys",), "better by their hash, with limits: server.keys"),
    Row("", "", "--api-key-file", ("server.key_file",), "hashes, not keys: penstock key hash"),
    Row("", "--admin-api-key", "", ("server.keys", "server.admin_port"),
        "a key of scope admin, on a listener of its own"),
    Row("--ssl-certfile --enable-ssl-refresh", "--ssl-certfile --enable-ssl-refresh", "--ssl-cert-file",
        ("server.tls_certificate",), "read again when it changes"),
    Row("--ssl-keyfile", "--ssl-keyfile", "--ssl-key-file", ("server.tls_key",)),
    Row("--allowed-origins", "", "--cors-origins", ("server.cors_origins",), "none unless named"),
    Row("--root-path", "--fastapi-root-path", "--api-prefix", (), "let the proxy take the prefix off"),
    Row("--shutdown-timeout", "", "", ("server.drain_timeout",), "30 s unless given"),
    Row("", "--watchdog-timeout", "", ("server.step_deadline",), "the worker is replaced; the server stays"),
    Row("--max-logprobs", "", "", ("server.limits.top_logprobs",)),
    Row("--otlp-traces-endpoint", "--otlp-traces-endpoint --enable-trace", "", ("server.trace_endpoint",), "over HTTP"),
    Row("--enable-log-requests", "--log-requests --log-requests-format", "--log-jsonl", ("server.log_format",),
        "a line for each request, always; its text never"),
    Row("", "--enable-metrics", "--metrics", (), "/metrics is always there"),
    Row("", "", "--ui --no-ui --webui --no-webui", ("server.dashboard",)),
)  # fmt: skip
ANSWERS: Final = (
    Row("--lora-modules --enable-lora", "--lora-paths --enable-lora", "--lora", ("model.adapters",),
        "name=directory,..."),
    Row("--max-loras --max-cpu-loras", "--max-loaded-loras --max-loras-per-batch", "", ("model.max_adapters",)),
    Row("--max-lora-rank", "--max-lora-rank", "", ("model.max_rank",)),
    Row("--tool-call-parser --enable-auto-tool-choice", "--tool-call-parser", "--jinja", ("server.tool_parser",),
        "tools are always on, and the parser is chosen from the model"),
    Row("--reasoning-parser", "--reasoning-parser", "--reasoning-format", ("server.reasoning_parser",),
        "chosen from the model"),
    Row("--structured-outputs-config", "--grammar-backend", "--grammar --json-schema", (),
        "a request says it; llguidance does it"),
    Row("--default-chat-template-kwargs", "--default-chat-template-kwargs", "--chat-template-kwargs", (),
        "a request says it: chat_template_kwargs"),
    Row("--enable-prompt-tokens-details", "--enable-cache-report", "", (), "usage always has cached_tokens"),
    Row("--enable-request-id-headers", "", "", (), "x-request-id is always there"),
    Row("--seed", "--random-seed", "--seed", (), "a request says it: seed"),
)  # fmt: skip
PARTS: Final = {
    "Model": MODEL, "Devices": DEVICES, "Memory": MEMORY, "Scheduling": SCHEDULE, "Server": SERVER, "Answers": ANSWERS,
}  # fmt: skip


def rows() -> Iterator[Row]:
    """All of them."""
    for part in PARTS.values():
        yield from part


def point_out(verb: str | None, words: Sequence[str]) -> None:
    """Refuse a flag that only other servers have, with what does the same here.

    `words` are those of the command line. Raises InvalidDeployment.
    """
    if verb not in VERBS or "--help" in words:
        return
    for place, word in enumerate(words):
        flag, _, value = word.partition("=")
        if not flag.startswith("-") or "." in flag:  # our own keys have a point
            continue
        row = next((row for row in rows() if any(flag in names for names in row.flags)), None)
        if row is not None:
            _refuse(flag, value or next(iter(words[place + 1 :]), ""), row)


def _refuse(flag: str, value: str, row: Row) -> None:
    from penstock.cli.flags import flag_name
    from penstock.errors import InvalidDeployment

    programs = [program for program, names in zip(PROGRAMS, row.flags, strict=True) if flag in names]
    here = " and ".join(flag_name(key) for key in row.keys)
    raise InvalidDeployment(
        field=flag, value="<hidden>" if "key" in flag or flag.endswith("-token") else value,
        why=f"a flag of {', '.join(programs)}, and not of ours",
        remedy="; ".join(filter(None, (here or "leave it out", row.note))),
    )  # fmt: skip


def reference() -> str:
    """docs/migration.md's tables, in Markdown."""
    return "\n\n".join(f"### {title}\n\n{_table(part)}" for title, part in PARTS.items())


def _table(part: Sequence[Row]) -> str:
    lines = [f"| {' | '.join(PROGRAMS)} | here | |", "|---|---|---|---|---|"]
    for row in part:
        cells = [" ".join(f"`{flag}`" for flag in names) for names in row.flags]
        keys = ", ".join(f"`{key}`" for key in row.keys) or "none"
        lines.append(f"| {' | '.join([*cells, keys, row.note])} |")
    return "\n".join(lines)
