"""How one chat request's answers are made and read: the grammar they obey, and the parts they fall into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from penstock.control.request import Guide
from penstock.errors import InvalidRequest
from penstock.runtime.grammar_check import GrammarJob
from penstock.serve.generation import Prompt
from penstock.serve.reading import PLAIN, Plan
from penstock.serve.reasoning import Begun, ReasoningFormat, begun, choose_reasoning
from penstock.serve.structured import guide
from penstock.serve.tools.choose import choose
from penstock.serve.tools.request import ToolUse
from penstock.serve.tools.tool import ToolFormat

if TYPE_CHECKING:
    from penstock.serve.front import Front

_PROMPT_END: Final = 64
"""Tokens of a prompt in which the template's last words are."""


async def answer_plan(
    front: Front, use: ToolUse, constraint: GrammarJob | None, prompt: Prompt, size: int = 0, tenant: str = ""
) -> tuple[Guide | None, Plan]:
    """The guide, None if the text is free, and the plan for reading.

    `size`: bytes of a body that has tools. `tenant`: whose grammars take turns with those of others.

    Raises:
        InvalidRequest: the model knows no way to call tools, a schema cannot be enforced, or a constraint on the text
            beside a required call.
    """
    server, tokenizer = front.deployment.server, front.tokenizer
    thinking = choose_reasoning(server.reasoning_parser, tokenizer)
    if thinking is None and constraint is None and not use.tools:
        return None, PLAIN
    state = Begun.CLOSED
    if thinking is not None:
        end = tokenizer.decode(prompt.ids[-_PROMPT_END:], skip_special_tokens=False)
        state = begun(thinking, end, prompt.begun)
    calls = choose(server.tool_parser, tokenizer) if use.tools else None
    text = await _grammar(front, use, calls, constraint, size, tenant)
    made = None if text is None else guide(text, thinking, state)
    if constraint is not None:
        calls = None  # the text is the client's own: what looks like a call in it is none
    plan = Plan(
        reasoning=thinking, begun=state, tools=calls, names=use.names, one_call=not use.many, call_ends=use.ends,
        keep=_visible(front, thinking, calls),
    )  # fmt: skip
    return made, plan


async def _grammar(
    front: Front,
    use: ToolUse,
    calls: ToolFormat | None,
    constraint: GrammarJob | None,
    size: int,
    tenant: str,
) -> str | None:
    if use.required and calls is not None:
        if constraint is not None:
            raise InvalidRequest(
                field=constraint.field, value="", why="tool_choice requires a call, whose form is its own",
                remedy='tool_choice: "auto" or "none", or no constraint on the text',
            )  # fmt: skip
        job, text = await front.offload.run(
            lambda: (use.job(calls), use.text(calls, front.tokenizer)), characters=size, field="tools"
        )
        await front.grammars.check(job, tenant)
        return text
    return None if constraint is None else await front.grammars.check(constraint, tenant)


def _visible(front: Front, thinking: ReasoningFormat | None, calls: ToolFormat | None) -> frozenset[int]:
    """Control tokens that mark what is read; special ones are left out of the text otherwise."""
    spellings = {*(calls.markers if calls is not None else ())}
    if thinking is not None:
        spellings |= {thinking.opener, thinking.closer}
    known = front.tokenizer.control_tokens
    return frozenset(known[spelling] for spelling in spellings if spelling in known)
