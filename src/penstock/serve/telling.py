"""A request that has ended, told to the log and, where a collector is named, to the tracer."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from starlette.types import Scope

from penstock.observe import request_log
from penstock.observe.request_log import EndedRequest, EndedSequence
from penstock.serve.choice import Choice

if TYPE_CHECKING:
    from penstock.observe.tracing import Tracer
    from penstock.serve.generation import Generation


def tell(
    scope: Scope, generation: Generation, *, tenant: str, stream: bool, began: float, outcome: str, failed: bool
) -> None:
    """`began`: when it was handed on to the service, monotonic. `outcome`: finish reasons, or the code of an error."""
    usage = generation.usage()
    first = generation.choices[0]
    sampling = first.request.sampling
    ended = EndedRequest(
        request_id=scope["request_id"],
        internal_id=first.request.id,
        route=getattr(scope.get("route"), "path", ""),
        tenant=tenant,
        model=generation.service.info.name,
        stream=stream,
        prompt_tokens=usage["prompt_tokens"],
        output_tokens=usage["completion_tokens"],
        cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
        receive_s=max(began - first.arrived, 0.0),
        seconds=monotonic() - first.arrived,
        outcome=outcome,
        failed=failed,
        max_tokens=first.request.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        sequences=[_sequence(choice) for choice in generation.choices],
    )
    request_log.write(ended)
    tracer: Tracer | None = getattr(scope["app"].state, "tracer", None)
    if tracer is not None:
        wanted = (b"traceparent", b"tracestate")
        tracer.ended(
            ended, {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in wanted}
        )


def _sequence(choice: Choice) -> EndedSequence:
    timings = choice.timings
    return EndedSequence(
        output_tokens=len(choice.token_ids),
        finish_reason=choice.finish_reason,
        first_token_s=None if choice.first_at is None else choice.first_at - choice.arrived,
        queue_s=None if timings is None else timings.queue_s,
        prefill_s=None if timings is None else timings.prefill_s,
        decode_s=None if timings is None else timings.decode_s,
    )
