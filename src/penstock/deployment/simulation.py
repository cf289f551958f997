"""The sections that the twin reads and a server of one replica on one device does not: what is modelled beyond it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from penstock.deployment.section import Section
from penstock.units import Count, Seconds, Words

DtypeName = Literal["float32", "bfloat16", "float16", "fp8", "fp8_block", "int8", "int4", "nvfp4", "mxfp4"]
ArrivalLaw = Literal["poisson", "gamma", "constant", "onoff", "drifting", "batch", "closed", "sessions"]


class Layout(Section):
    """How one replica is cut over devices."""

    tensor_parallel: int = Field(1, ge=1, le=1024, description="Devices that share each matrix.")
    pipeline_parallel: int = Field(1, ge=1, le=1024, description="Stages that hold consecutive layers.")
    attention_dp: int = Field(
        1, ge=1, le=1024,
        description="Ranks that hold different sequences and share the experts (DP attention), in lockstep. Each has a "
        "scheduler and KV of its own; policy.token_budget and max_seqs count for each.",
    )  # fmt: skip
    attention_dp_router: Literal["round_robin", "least_loaded", "least_waiting"] = Field(
        "least_waiting",
        description="Which rank serves a request: each in turn, the one with fewest, or with fewest of 4 x waiting + "
        "running (vLLM).",
    )
    moe_tensor_parallel: int | None = Field(
        None, ge=1, description="Devices that share each expert; default: those that expert_parallel leaves."
    )
    expert_parallel: int = Field(1, ge=1, description="Parts the set of experts is spread over.")
    sequence_parallel: bool = Field(False, description="Norms are cut along the tokens (Megatron).")
    devices_per_node: int | None = Field(
        None, ge=1, description="Default: hardware.node's, or what the device's entry says."
    )


class Precision(Section):
    """Types that the twin models. A server computes as model.dtype says."""

    weights: DtypeName | None = Field(None, description="Of dense matrices; default: the model's own.")
    experts: DtypeName | None = Field(None, description="Of experts; default: weights.")
    activations: DtypeName | None = Field(None, description="Default: bfloat16, or float32 for float32 weights.")
    kv: DtypeName | None = Field(None, description="Of KV blocks; default: activations.")
    head: DtypeName | None = Field(None, description="Of the LM head; default: activations.")


class Cluster(Section):
    """Replicas behind a router."""

    replicas: Count = Field(1, ge=1, le=4096, description="How many.")
    router: Literal["round_robin", "least_loaded", "least_waiting", "prefix_aware"] = Field(
        "least_loaded",
        description="Who serves a request: each in turn, the one with fewest, with fewest of 4 x waiting + running, or "
        "where its prefix is.",
    )


class Twin(Section):
    """How steps are priced."""

    price: Literal["auto", "roofline", "measured", "calibrated", "learned"] = Field(
        "auto",
        description="auto takes measured data where there is some for the hardware: calibrated, then measured, then "
        "roofline, the limits of the hardware.",
    )
    data: str | None = Field(
        None, description="Directory of operator databases or profile files; default: the package aiconfigurator-core."
    )
    backend: Literal["vllm", "sglang", "trtllm"] = Field("vllm", description="Whose kernels measured data are of.")
    backend_version: str | None = Field(None, description="Default: the newest there is.")
    cuda_graphs: bool = Field(True, description="Decode batches on a GPU are padded to captured sizes.")
    overlap_host: bool | None = Field(
        None, description="The host prepares the next step meanwhile; default: policy.plan_ahead."
    )
    host_step: Seconds | None = Field(None, ge=0, description="Host time of a step; default: the hardware's.")
    host_request: Seconds | None = Field(None, ge=0, description="Host time per sequence in a step.")
    host_token: Seconds | None = Field(None, ge=0, description="Host time per prompt token in a step.")
    price_per_hour: float | None = Field(None, ge=0, description="US dollars for one device; default: the catalogue's.")
    idle_watts: float | None = Field(None, ge=0, description="Of one device; default: the catalogue's.")
    peak_watts: float | None = Field(None, ge=0, description="Of one device; default: the catalogue's.")


class SharedPrefix(Section):
    """Text that generated prompts begin with, so that a prefix cache has something to hit."""

    tokens: Count = Field(0, ge=0, description="Its length, in front of a prompt's own tokens.")
    share: float = Field(1.0, ge=0, le=1, description="Share of the requests that begin with it.")
    groups: Count = Field(1, ge=1, description="Number of different ones, each equally likely.")


class Workload(Section):
    """What is asked, and when. A server takes what comes."""

    trace: str | None = Field(
        None,
        description="Azure, Mooncake, BurstGPT, ServeGen, LLMServingSim or Vidur file, or .gz: its times and lengths.",
    )
    trace_format: Literal["auto", "azure", "burstgpt", "mooncake", "llmservingsim", "vidur", "servegen"] = Field(
        "auto", description="auto: found from the content."
    )
    speed: float = Field(1.0, gt=0, description="A trace's time runs this many times as fast.")
    begin: Seconds = Field(0.0, ge=0, description="ServeGen: where in its days the run begins.")
    dequantise: bool = Field(False, description="Mooncake: spread requests that share a time stamp over its 3 s tick.")
    scale_to: Count | None = Field(
        None, ge=2, description="One factor for all lengths of a trace, so that prompt + output fit this context."
    )
    law: ArrivalLaw | None = Field(
        None, description="Law of arrival; default: the trace's own times, or poisson without a trace."
    )
    rate: float | None = Field(
        None, gt=0, description="Requests (or sessions) per second; default: 1, or the trace's own."
    )
    cv: float | None = Field(None, gt=0, description="Coefficient of variation of the gaps, for gamma; default: 1.")
    concurrency: Count | None = Field(None, ge=1, description="Users of a closed loop; default: 8.")
    think: Words = Field("0", description="Pause before a user's next request, as a law: 2s, exponential:10s, ...")
    turns: Words | None = Field(None, description="Requests of one session, as a law; default: 3.")
    prompt_tokens: Words = Field(
        "512", description="Law of prompt lengths, as penstock bench --input-tokens; without a trace."
    )
    output_tokens: Words = Field("128", description="Law of output lengths; without a trace.")
    context_tokens: Count | None = Field(None, ge=2, description="Generated requests are cut to fit this context.")
    requests: Count | None = Field(None, ge=1, description="At most so many; default: 1,000, or the whole trace.")
    duration: Seconds | None = Field(None, gt=0, description="Nothing arrives later.")
    shared_prefix: SharedPrefix = SharedPrefix()
    tenants: Count = Field(1, ge=1, description="Requests are of so many tenants, each with an equal share.")
    priorities: Count = Field(
        1, ge=1, description="Requests are of so many priorities, each with an equal share; lower goes first."
    )
    cancel_fraction: float = Field(0.0, ge=0, le=1, description="Share of users who leave in mid-answer.")
    max_tokens: Count | None = Field(
        None, gt=0, description="Bound on output that clients state; default: each output's true length."
    )
    seed: int = Field(0, ge=0, description="Of all laws. Same seed, same bits.")


class Slo(Section):
    """Limits that goodput is counted under."""

    ttft: Seconds | None = Field(None, gt=0, description="Time to first token.")
    tpot: Seconds | None = Field(None, gt=0, description="Mean time between later tokens of a request.")
    e2e: Seconds | None = Field(None, gt=0, description="Time to the last token.")
