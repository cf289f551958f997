"""What the endpoints share: the service, the tokenizer, and the way from a checked body to a `Generation`."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic, time
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec.structs import replace
from starlette.requests import Request as HttpRequest

from penstock.control.request import Guide, Request, Sampling
from penstock.deployment import Deployment
from penstock.errors import InvalidRequest
from penstock.runtime import Detokenizer
from penstock.runtime.admission import NO_BOUNDS
from penstock.runtime.facts import TimeBounds
from penstock.runtime.grammar_check import GrammarCheck
from penstock.serve.auth import MODELS, KeyRing
from penstock.serve.body import BodyRoom, parse_body, read_body
from penstock.serve.choice import Choice
from penstock.serve.errors import Refusal
from penstock.serve.events import ChunkFrame
from penstock.serve.generation import Generation, Prompt
from penstock.serve.limits import check_limits, field_bytes
from penstock.serve.metrics import Metrics
from penstock.serve.offload import Offload
from penstock.serve.reading import PLAIN, Plan, Reader
from penstock.serve.sampling import make_sampling, seed_of_choice
from penstock.serve.schema import Body, Named

if TYPE_CHECKING:
    from penstock.runtime import ChatTemplate, Tokenizer
    from penstock.runtime.service import Service

BODIES: Final = 16
"""Of the largest size, that may be under way together."""
MAX_ENTRIES: Final = 2**18
"""Log-probabilities of prompt tokens in one answer: 30 MB of JSON, made off the event loop."""

ID_CHARACTERS: Final = 24
"""Of a call's id in the ids of its sequences. A step's tokens come under those, and msgspec keeps keys of up to 31
characters, where a longer one is made anew for each token: a third of what reading a frame takes."""

SomeBody = TypeVar("SomeBody", bound=Named)


@dataclass(frozen=True, slots=True)
class Call:
    """One POST: who asked, when, and the names its answer carries."""

    tenant: str
    bounds: TimeBounds = NO_BOUNDS
    id: str = field(default_factory=lambda: os.urandom(16).hex())
    arrived: float = field(default_factory=monotonic)
    created: int = field(default_factory=lambda: int(time()))


class Front:
    """One per app; immutable but for what `metrics` counts."""

    def __init__(
        self,
        service: Service,
        deployment: Deployment,
        metrics: Metrics,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        keys: KeyRing,
    ) -> None:
        self.service, self.deployment, self.metrics = service, deployment, metrics
        self.tokenizer, self.template, self.keys = tokenizer, template, keys
        self.bodies = BodyRoom(BODIES * deployment.server.max_body_bytes, self._wait_s)
        self.grammars = GrammarCheck(deployment.server.limits.schema_seconds)
        self._field_bytes = field_bytes(deployment.server.limits)
        self.offload = Offload(max_pending=deployment.server.queue.max_requests)

    def _wait_s(self) -> float:
        return self.service.retry_after_s

    async def body(self, request: HttpRequest, kind: type[SomeBody]) -> tuple[SomeBody, int]:
        """Read and check a body; gives it and its size in bytes. Raises Refusal 404, 413, 415; InvalidRequest."""
        raw = await read_body(request.scope, request.receive, self.deployment.server.max_body_bytes, self.bodies)
        body = parse_body(raw, kind, self.metrics.unknown_field, self._field_bytes)
        if isinstance(body, Body) and body.stream_options is not None and not body.stream:
            raise InvalidRequest(
                field="stream_options", value={}, why="only a stream has them", remedy="stream: true, or leave them out"
            )
        check_limits(body, self.deployment.server.limits)
        self.check_model(body.model, request.scope.get(MODELS))
        return body, len(raw)

    def check_model(self, name: str | None, allowed: Sequence[str] | None = None) -> None:
        """Raises Refusal 404 unless `name` is the model served here or one of its adapters; None means the model.

        `allowed`: those the key may use. Of others it does not learn whether they are here.
        """
        if allowed is None:
            self.adapter(name)
        elif (name or self.service.info.name) not in (seen := [one for one in self.names() if one in allowed]):
            raise self._no_model(name, seen)

    def names(self) -> list[str]:
        """Of the model, and of the adapters that are loaded."""
        return [self.service.info.name, *(one.name for one in self.service.adapters.listed())]

    def adapter(self, name: str | None) -> str:
        """What a request that names `name` carries as its adapter: '' for the model itself. Raises Refusal 404."""
        served = self.service.info.name
        if name is None or name == served:
            return ""
        handle = self.service.adapters.handle(name)
        if handle is None:
            raise self._no_model(name, self.names())
        return handle

    def _no_model(self, name: str | None, others: Sequence[str]) -> Refusal:
        names = ", ".join(others) or "none is loaded that your key may use"
        wrong = "no model was named" if name is None else f"no model {name[:120]!r} here"
        return Refusal(404, "model_not_found", f"{wrong}. Remedy: one of: {names}", param="model")

    def frame(
        self, call: Call, id_prefix: str, kind: str, *, usage: bool, model: str | None = None
    ) -> ChunkFrame:  # fmt: skip
        """The constant part of an answer's chunks; `model` as the request named it."""
        info, adapter = self.service.info, self.adapter(model)
        fingerprint = info.fingerprint
        if adapter:
            fingerprint += f"-{self.service.adapters.fingerprint(adapter)}"
        return ChunkFrame(
            id=id_prefix + call.id,
            kind=kind,
            created=call.created,
            model=model or info.name,
            fingerprint=fingerprint,
            usage=usage,
        )

    def generation(
        self, call: Call, body: Body, prompts: Sequence[Prompt], *, max_tokens: int | None, max_field: str,
        prompt_field: str, logprobs: int | None, prompt_logprobs: int | None = None, embed: bool = False,
        guide: Guide | None = None, plan: Plan = PLAIN,
    ) -> Generation:  # fmt: skip
        """n sequences for each prompt, checked against the context and ready to run.

        `max_tokens` None: to the end of the context; 0: only the prompts are looked at. `guide`: the grammar the text
        obeys. `plan`: how it is read.

        Raises:
            InvalidRequest: too long, a token id that does not exist, or fields that contradict each other.
        """
        info, n = self.service.info, body.n or 1
        stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        self._check_entries(body, prompts, prompt_logprobs)
        silent, max_tokens = max_tokens == 0, max_tokens or (None if max_tokens is None else 1)
        key = self.keys.entitlement(call.tenant)
        group = "" if key.sharing_group is None else f"group:{key.sharing_group}"
        adapter = self.adapter(body.model)
        choices: list[Choice] = []
        for number, prompt in enumerate(prompts):
            bound = self._bound(prompt, max_tokens, max_field, prompt_field, embed=embed)
            sampling = make_sampling(
                body, defaults=self.tokenizer.sampling_defaults, eos_ids=self.tokenizer.eos_ids,
                vocab_size=info.vocab_size, max_tokens=bound, logprobs=logprobs,
                prompt_logprobs=prompt_logprobs, embed=embed,
            )  # fmt: skip
            sampling = sampling if guide is None else replace(sampling, guide=guide)
            for one in range(n):
                index = number * n + one
                request = Request(
                    id=f"{call.id[:ID_CHARACTERS]}-{index}", prompt=prompt.ids, max_tokens=bound, tenant=call.tenant,
                    prefix_group=group, weight=key.weight,
                    salt=body.cache_salt or "", priority=body.priority or 0, adapter=adapter,
                    sampling=_with_seed(sampling, seed_of_choice(sampling.seed, one)),
                )  # fmt: skip
                choices.append(
                    Choice(
                        index=index, prompt_index=number, request=request, arrived=call.arrived,
                        detokenizer=Detokenizer(
                            self.tokenizer, stop=stops, include_stop=bool(body.include_stop_str_in_output),
                            min_tokens=sampling.min_tokens, skip_special_tokens=body.skip_special_tokens is not False,
                            keep=plan.keep,
                        ),
                        client_stop_ids=body.stop_token_ids or (), include_stop=bool(body.include_stop_str_in_output),
                        silent=silent, reader=None if plan.plain else Reader(plan, _call_id), wait_s=self._wait_s,
                    )
                )  # fmt: skip
        return Generation(
            self.service, self.metrics, prompts, choices, n, bounds=call.bounds, quota=self.keys.quota
        )  # fmt: skip

    def _check_entries(self, body: Body, prompts: Sequence[Prompt], top: int | None) -> None:
        """Raises InvalidRequest where log-probabilities of so many prompt tokens would be an answer without bound."""
        if top is None:
            return
        entries = (body.n or 1) * sum(len(prompt.ids) for prompt in prompts) * (top + 1)
        if entries > MAX_ENTRIES:
            raise InvalidRequest(
                field="prompt_logprobs", value=top,
                why=f"that is {entries} log-probabilities of the prompt; {MAX_ENTRIES} fit into one answer",
                remedy="fewer of them, or a shorter prompt",
            )  # fmt: skip

    def _bound(self, prompt: Prompt, asked: int | None, max_field: str, prompt_field: str, *, embed: bool) -> int:
        context, length = self.service.info.max_sequence_tokens, len(prompt.ids)
        least = 0 if embed else asked or 1  # the one token of an embedding is made up
        if not length:
            raise InvalidRequest(field=prompt_field, value="", why="it has no tokens", remedy="send some text")
        if length + least > context:
            fits = context - length
            shorter = f"a prompt of {context - (not embed)} tokens or fewer"
            why = f"{length} prompt tokens + {least} output tokens exceed the context of {context} tokens"
            raise InvalidRequest(
                field=max_field if fits > 0 else prompt_field, value=asked if fits > 0 else length, why=why,
                remedy=f"{max_field} of at most {fits}" if fits > 0 else shorter, code="context_length_exceeded",
            )  # fmt: skip
        return asked or context - length


def _with_seed(sampling: Sampling, seed: int | None) -> Sampling:
    return sampling if seed == sampling.seed else replace(sampling, seed=seed)


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
