"""What one request may ask for, at most. Beyond it a request is refused with 400 before anything is made of it.

The defaults are far from what a client needs and near to what a server can promise; each may be raised up to the bound
that stands behind it here, which is what the code was measured with.
"""

from __future__ import annotations

from pydantic import Field

from penstock.deployment.section import Section
from penstock.units import Count, Seconds


class Limits(Section):
    """Bounds on the fields of a request."""

    n: Count = Field(16, ge=1, le=128, description="Choices per prompt: n, best_of.")
    prompts: Count = Field(64, ge=1, le=2048, description="Prompts in one request.")
    inputs: Count = Field(1024, ge=1, le=2048, description="Texts to embed in one request; they queue as prompts do.")
    messages: Count = Field(4096, ge=1, le=65_536, description="Messages of a conversation.")
    stop_strings: Count = Field(16, ge=0, le=64, description="Strings in stop.")
    stop_characters: Count = Field(256, ge=1, le=4096, description="Characters of one of them.")
    stop_tokens: Count = Field(64, ge=0, le=1024, description="Ids in stop_token_ids.")
    logit_bias: Count = Field(1024, ge=0, le=65_536, description="Ids in logit_bias.")
    top_logprobs: Count = Field(20, ge=0, le=100, description="top_logprobs, and prompt_logprobs.")
    logprobs: Count = Field(5, ge=0, le=100, description="logprobs of /v1/completions.")
    metadata_pairs: Count = Field(16, ge=0, le=256, description="Pairs in metadata.")
    tools: Count = Field(128, ge=0, le=1024, description="Functions in tools.")
    tools_bytes: Count = Field(
        512 * 1024, ge=1, le=4 * 2**20, description="Bytes of JSON of all functions in tools together."
    )
    schema_depth: Count = Field(32, ge=1, le=64, description="Levels of a JSON schema.")
    schema_bytes: Count = Field(64 * 1024, ge=1, le=2**20, description="Bytes of a JSON schema, grammar or expression.")
    schema_seconds: Seconds = Field(2.0, gt=0, le=10, description="Processor time to compile one of them in.")
    header_bytes: Count = Field(32 * 1024, ge=1024, le=256 * 1024, description="Bytes of a request's headers together.")
