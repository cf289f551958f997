"""What other wire formats say, as a chat: turns with the place in the body they came from, and the way to an answer.

The chat code checks and refuses; what it names in an error is found again under the name that the client gave it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

from penstock.errors import InvalidRequest
from penstock.serve.answer_plan import answer_plan
from penstock.serve.chat import chat_prompt
from penstock.serve.errors import invalid
from penstock.serve.front import Call, Front
from penstock.serve.generation import Generation, Prompt
from penstock.serve.schema import ChatBody, Message, TextPart
from penstock.serve.structured import wanted
from penstock.serve.tools.request import tool_use

MAX_CALLS: Final = 128
"""Of one turn, as in a chat."""
_PLACE: Final = re.compile(r"messages\[(\d+)\](?:\.tool_calls\[(\d+)\])?")

Role = Literal["system", "developer", "user", "assistant", "tool"]
Renames = Sequence[tuple[str, str]]
"""Pieces of the chat's field names, and what this format calls them."""


@dataclass(slots=True)
class Turn:
    """One message in the making. `place`: where in the body it is."""

    role: Role
    place: str
    content: str | list[TextPart] | None = None
    thoughts: str = ""
    answers: str | None = None
    """The id of the call that this is the answer to."""
    calls: list[dict[str, Any]] = field(default_factory=list)
    call_places: list[str] = field(default_factory=list)

    def add_call(self, place: str, id: str, name: str, arguments: str) -> None:
        """A call that the assistant made. `arguments` is JSON, which is looked at later. Raises InvalidRequest."""
        if len(self.calls) == MAX_CALLS:
            raise invalid(place, "", f"it is call {MAX_CALLS + 1} of one turn", f"at most {MAX_CALLS}")
        self.calls.append({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
        self.call_places.append(place)

    def message(self) -> Message:
        """As the chat knows it."""
        content = self.content
        return Message(
            role=self.role, content="" if content is None and not self.calls else content, tool_call_id=self.answers,
            tool_calls=self.calls or None, reasoning_content=self.thoughts or None,
        )  # fmt: skip


def texts(parts: Sequence[Any], kinds: frozenset[str], place: str) -> list[TextPart]:
    """Parts that are text, under any of the names `kinds`. Raises InvalidRequest for the first that is not."""
    found = []
    for number, part in enumerate(parts):
        if part.type not in kinds or part.text is None:
            raise invalid(
                f"{place}[{number}]", part.type, "this model reads text only",
                f'parts of the form {{"type": "{min(kinds)}", "text": "..."}}', "unsupported_content",
            )  # fmt: skip
        found.append(TextPart("text", part.text))
    return found


def check_count(turns: Sequence[object], most: int, field: str) -> None:
    """Raises InvalidRequest: more turns than `server.limits.messages`."""
    if len(turns) > most:
        raise invalid(
            field, f"{len(turns)} messages", f"this server allows at most {most} messages",
            f"{most} or fewer, or a higher server.limits.messages",
        )  # fmt: skip


@contextmanager
def named_as(turns: Sequence[Turn], whole: str, renames: Renames) -> Iterator[None]:
    """Errors within name what the client sent. `whole`: the field that holds the conversation."""
    try:
        yield
    except InvalidRequest as error:
        name = _PLACE.sub(lambda found: _place(turns, found), error.field, count=1)
        name = whole if name == "messages" else name
        for chat, here in renames:
            name = name.replace(chat, here)
        raise InvalidRequest(
            field=name, value=error.value, why=error.why, remedy=error.remedy, code=error.code
        ) from None


def _place(turns: Sequence[Turn], found: re.Match[str]) -> str:
    turn = turns[int(found[1])]
    return turn.place if found[2] is None else turn.call_places[int(found[2])]


async def generation_of(
    front: Front, call: Call, chat: ChatBody, size: int, *, max_tokens: int | None, max_field: str
) -> Generation:
    """A chat of `size` bytes to an answer that can run. Raises InvalidRequest, Refusal, Overloaded."""
    limits = front.deployment.server.limits
    constraint = await front.offload.run(partial(wanted, chat, limits), characters=size, field="response_format")
    use = await front.offload.run(partial(tool_use, chat, limits), characters=size, field="tools")
    prompt = await chat_prompt(front, chat, size, use)
    guide, plan = await answer_plan(front, use, constraint, prompt, size, call.tenant)
    return front.generation(
        call, chat, [prompt], max_tokens=max_tokens, max_field=max_field, prompt_field="messages", logprobs=None,
        guide=guide, plan=plan,
    )  # fmt: skip


async def prompt_of(front: Front, chat: ChatBody, size: int) -> Prompt:
    """The tokens of its prompt only. Raises as `generation_of`."""
    limits = front.deployment.server.limits
    use = await front.offload.run(partial(tool_use, chat, limits), characters=size, field="tools")
    return await chat_prompt(front, chat, size, use)
