"""POST /v1/completions: text or token ids to continue, one or many, and the chunks of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, Literal

from starlette.requests import Request as HttpRequest

from penstock.control.request import Guide
from penstock.errors import InvalidRequest
from penstock.runtime import Tokenizer
from penstock.serve.answer import Answer
from penstock.serve.choice import Choice, Piece
from penstock.serve.continuous_usage import with_usage
from penstock.serve.events import ChunkFrame, json_bytes, json_text
from penstock.serve.front import Call, Front
from penstock.serve.generation import Generation, Prompt
from penstock.serve.logprobs import LegacyLogprobs, prompt_logprobs
from penstock.serve.schema import CompletionBody
from penstock.serve.structured import wanted
from penstock.serve.time_bounds import time_bounds

DEFAULT_MAX_TOKENS: Final = 16

Asked = str | Sequence[int | str | list[int]]
"""A text, token ids, or several of either."""


async def completions(front: Front, request: HttpRequest, tenant: str) -> Answer:
    """From the body to an answer that runs when it is sent. Raises InvalidRequest, Refusal, Overloaded."""
    call = Call(tenant, time_bounds(request))
    body, size = await front.body(request, CompletionBody)
    if body.max_tokens == 0 and not body.echo and body.prompt_logprobs is None:
        raise InvalidRequest(
            field="max_tokens", value=0, why="nothing would be generated", remedy="1 or more, or echo: true"
        )
    prompts = await read_prompts(
        front, body.prompt, special=body.add_special_tokens is not False, field="prompt", echo=bool(body.echo)
    )
    constraint = await front.offload.run(
        partial(wanted, body, front.deployment.server.limits), characters=size, field="response_format"
    )
    guide = None if constraint is None else Guide(grammar=await front.grammars.check(constraint, tenant))
    scored = [body.prompt_logprobs, body.logprobs if body.echo else None]
    generation = front.generation(
        call, body, prompts, max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        max_field="max_tokens", prompt_field="prompt", logprobs=body.logprobs,
        prompt_logprobs=max((top for top in scored if top is not None), default=None),
        guide=guide,
    )  # fmt: skip
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    form = CompletionFormat(
        front.frame(call, "cmpl-", "text_completion", usage=usage, model=body.model), front.tokenizer, generation,
        body=body,
    )  # fmt: skip
    shown = with_usage(form, generation, body.stream_options)
    return Answer(generation, shown, stream=bool(body.stream), tenant=tenant)


async def read_prompts(
    front: Front, prompt: Asked, *, special: bool, field: str, limit: Literal["prompts", "inputs"] = "prompts",
    echo: bool = False,
) -> list[Prompt]:  # fmt: skip
    """Token ids of one or several prompts, in whichever form they came; of ids with the text if `echo` wants it.

    `limit`: the key of server.limits that bounds their number. Raises InvalidRequest, which names `field`.
    """
    most: int = getattr(front.deployment.server.limits, limit)
    context = front.service.info.max_sequence_tokens
    if not isinstance(prompt, str) and len(prompt) > max(context, most):
        # Before anything walks over it: as ids it exceeds the context, as texts the number of prompts.
        raise InvalidRequest(
            field=field, value=f"{len(prompt)} items", why=f"the context is {context} tokens",
            remedy=f"fewer token ids, or at most {most} prompts", code="context_length_exceeded",
        )  # fmt: skip
    asked = separate_prompts(prompt, most, field, limit)
    vocab_size, tokenizer = front.service.info.vocab_size, front.tokenizer
    for one in asked:
        if isinstance(one, str):
            tokenizer.check_fits([one], context, field=field)

    def encode() -> list[Prompt]:
        prompts = []
        for one in asked:
            if isinstance(one, str):
                prompts.append(Prompt(tuple(tokenizer.encode(one, add_special_tokens=special)), one))
                continue
            if max(one, default=0) >= vocab_size:
                raise InvalidRequest(
                    field=field, value=max(one), why="no such token", remedy=f"ids from 0 to {vocab_size - 1}"
                )
            prompts.append(Prompt(tuple(one), tokenizer.decode(one) if echo else ""))
        return prompts

    return await front.offload.run(encode, characters=sum(map(len, asked)), field=field)


def separate_prompts(prompt: Asked, most: int, field: str = "prompt", limit: str = "prompts") -> list[str | list[int]]:
    """Four forms as one: each prompt is a string or a list of ids, `most` at most.

    >>> separate_prompts([1, 2], 1), separate_prompts(["a", [3]], 2)
    ([[1, 2]], ['a', [3]])

    Raises:
        InvalidRequest: bare ids beside strings or lists, or too many prompts.
    """
    if isinstance(prompt, str):
        return [prompt]
    ids = [one for one in prompt if isinstance(one, int)]
    if len(ids) == len(prompt):
        return [ids]
    several = [one for one in prompt if not isinstance(one, int)]
    if ids:
        raise InvalidRequest(
            field=field, value=prompt[:8], why="token ids stand beside strings or lists",
            remedy="one list of ids, or a list of strings and lists of ids",
        )  # fmt: skip
    if len(several) > most:
        raise InvalidRequest(
            field=field, value=f"{len(several)} {limit}", why=f"at most {most} fit into one request",
            remedy=f"several requests, or a higher server.limits.{limit}",
        )  # fmt: skip
    return several


class CompletionFormat:
    """The chunks of a completion, and the whole of one."""

    def __init__(
        self, frame: ChunkFrame, tokenizer: Tokenizer, generation: Generation, *, body: CompletionBody
    ) -> None:
        self._frame, self._tokenizer, self._prompts = frame, tokenizer, generation.prompts
        self._echo, self._ids, self._timings = bool(body.echo), bool(body.return_token_ids), bool(body.timings)
        self._top, self._prompt_top = body.logprobs, body.prompt_logprobs
        self._text = [frame.prefix(choice.index, b',"text":') for choice in generation.choices]
        self._legacy: list[LegacyLogprobs] = []
        if body.logprobs is not None:
            skips = body.skip_special_tokens is not False
            self._legacy = [LegacyLogprobs(tokenizer, skip_special_tokens=skips) for _ in generation.choices]
        self._plain_tail = b',"logprobs":null,"finish_reason":null' + frame.close

    def opening(self, choice: Choice) -> bytes:
        """With `echo`, `return_token_ids` or `prompt_logprobs`, what concerns the prompt; else nothing."""
        if not self._echo and not self._ids and self._prompt_top is None:
            return b""
        tail = b',"logprobs":' + json_bytes(self._echoed_logprobs(choice)) + b',"finish_reason":null'
        if self._ids:
            tail += b',"prompt_token_ids":' + json_bytes(choice.request.prompt) + b',"token_ids":[]'
        if self._prompt_top is not None:
            tail += b',"prompt_logprobs":' + json_bytes(self._prompt_logprobs(choice))
        return self._text[choice.index] + json_text(self._before(choice)) + tail + self._frame.close

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        """One event; nothing while the text is held back, unless ids or logprobs of the tokens were asked for."""
        if not self._legacy and not self._ids:
            return self._text[choice.index] + json_text(piece.text) + self._plain_tail if piece.text else b""
        if not piece.tokens and not piece.text:
            return b""
        tail = b',"logprobs":' + json_bytes(self._logprobs_of(choice, piece)) + b',"finish_reason":null'
        if self._ids:
            tail += b',"token_ids":' + json_bytes(piece.tokens)
        return self._text[choice.index] + json_text(piece.text) + tail + self._frame.close

    def around(self, choice: Choice) -> tuple[bytes, bytes] | None:
        return None if self._legacy or self._ids else (self._text[choice.index], self._plain_tail)

    def closing(self, choice: Choice) -> bytes:
        """The finish chunk: empty text."""
        reasons = json_bytes(choice.finish_reason) + b',"stop_reason":' + json_bytes(choice.stop_reason)
        timings = {"timings": choice.shown_timings()} if self._timings else {}
        start = self._text[choice.index] + b'"","logprobs":null,"finish_reason":'
        return start + reasons + self._frame.close_with(timings)

    def ending(self, generation: Generation) -> bytes:
        return self._frame.ending(generation.usage())

    def whole(self, generation: Generation) -> bytes:
        choices = [self._choice(choice) for choice in generation.choices]
        timings = {"timings": generation.slowest().shown_timings()} if self._timings else {}
        return self._frame.whole({"choices": choices, "usage": generation.usage()} | timings)

    def _choice(self, choice: Choice) -> dict[str, Any]:
        before = self._echoed_logprobs(choice)
        logprobs = self._logprobs_of(choice, Piece("", choice.token_ids, choice.logprobs))
        if before is not None and logprobs is not None:
            logprobs = {name: before[name] + logprobs[name] for name in before}
        shown: dict[str, Any] = {
            "index": choice.index,
            "text": self._before(choice) + choice.text,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if self._ids:
            shown |= {"prompt_token_ids": choice.request.prompt, "token_ids": choice.token_ids}
        if self._prompt_top is not None:
            shown["prompt_logprobs"] = self._prompt_logprobs(choice)
        return shown

    def _echoed_logprobs(self, choice: Choice) -> dict[str, Any] | None:
        """Of the prompt, where it is echoed and log-probabilities are wanted."""
        found = choice.prompt_logprobs
        if not self._echo or self._top is None or found is None:
            return None
        return self._legacy[choice.index].of_prompt(choice.request.prompt, self._before(choice), found, self._top)

    def _prompt_logprobs(self, choice: Choice) -> list[dict[str, dict[str, Any]] | None] | None:
        found = choice.prompt_logprobs
        if found is None or self._prompt_top is None:
            return None
        return prompt_logprobs(self._tokenizer, choice.request.prompt, found, self._prompt_top)

    def _before(self, choice: Choice) -> str:
        return self._prompts[choice.prompt_index].text if self._echo else ""

    def _logprobs_of(self, choice: Choice, piece: Piece) -> dict[str, Any] | None:
        return self._legacy[choice.index].of(piece.tokens, piece.logprobs) if self._legacy else None
