"""The sections that a server reads: model, hardware, memory, policy, front end. The twin reads all but the last."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from penstock.deployment.access import Key
from penstock.deployment.limits import Limits
from penstock.deployment.section import Section
from penstock.units import Count, Seconds

DEFAULT_KV_BYTES: Final = 256 * 2**20


def _as_mapping(value: object) -> object:
    """A flag's `a=x,b=y` as {a: x, b: y}; anything else as it is."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    return {name.strip(): path.strip() for name, _, path in pairs}


ADAPTER_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"
AdapterName = Annotated[str, StringConstraints(pattern=ADAPTER_NAME)]
AdapterPath = Annotated[str, StringConstraints(min_length=1)]
Adapters = Annotated[dict[AdapterName, AdapterPath], BeforeValidator(_as_mapping)]


ServedDtype = Literal["float32", "float32_compressed", "bfloat16", "int8", "int8_weights", "int4", "fp8"]


class Model(Section):
    """Which weights, and in what precision."""

    path: str = Field("millrace", description="Checkpoint directory in Hugging Face layout, or the model in the box.")
    name: str | None = Field(None, description="Name that clients ask for; default: the directory's name.")
    dtype: ServedDtype | None = Field(
        None,
        description="Precision of weights, activations and KV. float32_compressed: float32 to the bit, in 28 bits a "
        "weight. int8: matrices and what they multiply, with float32 "
        "around them and in KV. int8_weights: the matrices alone. int4: matrices in groups of 32, and what they "
        "multiply in int8. These four run on CPUs. fp8: matrices and what they multiply, with bfloat16 around them, "
        "on GPUs that have it. Default: float32 to serve; in a simulation of a public model, as it is published.",
    )
    max_sequence_tokens: Count | None = Field(
        None, gt=0, description="Longest prompt + output; default: what the model was trained for."
    )

    adapters: Adapters = Field(
        {}, description="LoRA adapters to load at start, name: directory; as a flag name=directory,name=directory."
    )
    adapter_directory: str | None = Field(
        None, description="Adapters that a running server is told to load must lie in here; none: it loads no others."
    )
    max_adapters: Count = Field(8, ge=1, le=1024, description="Adapters at one time.")
    max_rank: Count = Field(32, ge=1, le=1024, description="Largest rank of an adapter; memory is set aside for it.")
    pooling: Literal["last", "mean"] | None = Field(
        None,
        description="Embeddings are made of the last token's hidden state, or of the mean of all. Default: as the "
        "checkpoint's 1_Pooling/config.json says; without one there are no embeddings.",
    )
    normalize: bool | None = Field(
        None, description="Embeddings have length 1. Default: as the checkpoint's modules.json says; without one, yes."
    )

    @property
    def adapter_room(self) -> int:
        """Adapters that can be loaded at one time; 0 where none ever will be."""
        return self.max_adapters if self.adapters or self.adapter_directory is not None else 0

    @property
    def served_dtype(self) -> ServedDtype:
        """The form of a server's weights."""
        return self.dtype or "float32"

    @property
    def weights_dtype(self) -> Literal["float32", "bfloat16", "int8", "int4", "fp8"]:
        """The type in which a server stores its matrices, as `precision` names it."""
        served = self.served_dtype
        if served == "float32_compressed":
            return "float32"
        return "int8" if served == "int8_weights" else served

    @property
    def compute_dtype(self) -> Literal["float32", "bfloat16"]:
        """The type of a server's activations outside products, and of its KV."""
        return "bfloat16" if self.served_dtype in ("bfloat16", "fp8") else "float32"


class Hardware(Section):
    """Where it runs."""

    name: str | None = Field(
        None,
        description="What the twin models: a device of the catalogue (penstock inspect hardware), or a machine "
        "that was measured (penstock calibrate). Serving runs on the device below, whatever stands here.",
    )
    node: str | None = Field(
        None,
        description="Machine that the twin puts the devices into: dgx-h100, ... What leaves it goes over the network, "
        "and its own power and host memory count. Default: as many devices as the device's entry joins.",
    )
    cluster: str | None = Field(
        None, description="Cluster that the twin takes its nodes and network from: dgx-h100-superpod, ..."
    )
    link: str | None = Field(
        None, description="What joins a node's devices in the twin: nvlink-4, pcie-5-x16, ...; default: the device's."
    )
    network: str | None = Field(
        None, description="What joins nodes in the twin: infiniband-ndr, ...; default: the cluster's or the device's."
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="Device that computes when serving.")
    threads: int | None = Field(None, gt=0, description="CPU threads of the engine; default: all cores.")


class Memory(Section):
    """How KV blocks are kept."""

    kind: Literal["prefix_tree", "paged", "reserved"] = Field(
        "prefix_tree",
        description="prefix_tree shares equal prefixes; paged shares nothing; reserved gives each request room for the "
        "longest sequence at once (the baseline before paging).",
    )
    evict_idle: Literal["fair", "lru"] = Field(
        "fair",
        description="Whose cached prefixes make room: fair, those of the tenant that holds most for its weight, so "
        "that none can push out another's share; lru, those that were idle longest, whoever's they are.",
    )
    block_tokens: Count = Field(16, ge=1, le=1024, description="Tokens in one KV block.")
    kv_bytes: Count | None = Field(
        None,
        gt=0,
        description="Device memory for KV blocks. Default: 256 MiB; in a simulation of a GPU, what "
        "device_share leaves beside weights and activations, as engines size it.",
    )
    device_share: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Share of a simulated device's memory that the engine may use (vLLM's "
        "gpu_memory_utilization); for kv_bytes that is left out.",
    )
    host_bytes: Count = Field(0, ge=0, description="Host memory for swapped blocks; needed by evict: swap.")
    host_tier: str | None = Field(
        None,
        description="Where the twin keeps swapped blocks: ddr5-8ch, nvme-gen4, ... Default: host memory, as fast as "
        "the link to it.",
    )
    watermark: float = Field(
        0.01, ge=0, lt=1, description="Share of blocks kept free when a prompt is admitted, so that decodes can grow."
    )

    @property
    def pool_bytes(self) -> int:
        """Of a pool whose size does not follow from a device."""
        return DEFAULT_KV_BYTES if self.kv_bytes is None else self.kv_bytes


PolicyName = Literal["sarathi", "splitfuse", "orca", "vllm_prefill_first", "request_level"]
OrderName = Literal["arrival", "priority", "shortest", "fair_share"]
ComposeName = Literal["stall_free", "splitfuse", "mixed_prompts", "prefill_first", "request_level"]
EvictName = Literal["recompute", "swap"]
MOST_SEQS: Final = 4096


class Policy(Section):
    """Who is next, how a step is filled, who gives way: order x compose x evict. A name sets compose."""

    name: PolicyName = Field("sarathi", description="A named combination; the keys below override its parts.")
    order: OrderName = Field("arrival", description="Who of the waiting is next.")
    compose: ComposeName | None = Field(None, description="How a step's token budget is filled; default: the name's.")
    evict: EvictName = Field("recompute", description="What happens to a sequence that must give way.")
    token_budget: Count = Field(
        512, gt=0, description="Tokens in one step, decodes included; a prompt that may not be cut can exceed it."
    )
    max_seqs: Count = Field(128, gt=0, le=MOST_SEQS, description="Sequences that hold KV at the same time.")
    ageing_s: Seconds = Field(
        30.0,
        gt=0,
        description="Waiting this long outweighs one priority level, or 1,000 prompt tokens in shortest.",
    )
    plan_ahead: bool = Field(True, description="Plan one step while the one before still runs.")


ApiKey = Annotated[str, StringConstraints(pattern=r"^\S+$")]
Origin = Annotated[str, StringConstraints(pattern=r"^https?://[A-Za-z0-9._\-\[\]:]+$")]


class Queue(Section):
    """Bounds of what waits. Beyond them requests are refused with 429."""

    max_requests: Count = Field(1024, gt=0, description="Requests accepted that have no token yet.")
    max_prompt_tokens: Count = Field(1_000_000, gt=0, description="Their prompt tokens together.")


class Server(Section):
    """The HTTP front end."""

    host: str = Field("127.0.0.1", description="Address to listen on; another than loopback needs keys.")
    port: int = Field(8000, ge=0, le=65535, description="0 takes a free one.")
    api_keys: tuple[ApiKey, ...] = Field(
        (), description="Keys that clients must send, in the clear; no keys at all: open, loopback only."
    )
    keys: tuple[Key, ...] = Field((), description="Keys by their hash, with scopes, tenant, weight and limits.")
    key_file: str | None = Field(None, description="File with more `keys`, read again when it changes.")
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of the administration, always on 127.0.0.1; 0 takes a free one.",
    )
    tls_certificate: str | None = Field(None, description="PEM file with the certificate chain; read again on change.")
    tls_key: str | None = Field(None, description="PEM file with its private key.")
    allow_public_without_key: bool = Field(False, description="Listen on a public address with no key, for everyone.")
    drain_timeout: Seconds = Field(30.0, ge=0, description="Time running requests get after SIGTERM.")
    queue: Queue = Queue()
    max_body_bytes: Count = Field(8 * 10**6, gt=0, description="Largest request body.")
    limits: Limits = Limits()
    tool_parser: Literal[
        "auto", "hermes", "mistral_v11", "mistral", "deepseek", "deepseek_v31", "pythonic", "llama3_json", "json"
    ] = Field("auto", description="Format in which the model calls tools; auto: by its chat template and vocabulary.")
    reasoning_parser: Literal["auto", "none", "think", "brackets", "seed", "granite"] = Field(
        "auto", description="How the model marks its reasoning; auto: by its vocabulary and template."
    )
    cors_origins: tuple[Origin, ...] = Field(
        (), description="Origins whose web pages may call the API from a browser, such as https://app.example.org."
    )
    step_deadline: Seconds = Field(
        120.0,
        gt=0,
        description="A worker whose step takes longer is replaced. One that rests, because it was stopped or waits "
        "for ever, is found in seconds.",
    )
    dashboard: bool = Field(True, description="Serve the page at `/`: chat and live figures.")
    log_format: Literal["text", "json"] = Field("text", description="Form of the log, on stderr: lines, or JSON lines.")
    trace_endpoint: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="Collector that gets OpenTelemetry spans over OTLP/HTTP, such as http://127.0.0.1:4318/v1/traces; "
        "none: no spans, and no outgoing connection. Needs penstock[otel].",
    )
    record: str | None = Field(
        None, description="Write the schedule to this new file, for `penstock replay`; compressed if it ends in .gz."
    )

    @property
    def shared(self) -> bool:
        """Whether there may be several tenants."""
        return self.key_file is not None or len({key.owner for key in self.keys}) + len(self.api_keys) > 1

    @property
    def locked(self) -> bool:
        """Whether keys are asked for."""
        return bool(self.api_keys or self.keys or self.key_file is not None)
