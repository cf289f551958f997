"""A conversation as token ids, through the model's own Jinja template. Imports no torch: the HTTP front end uses it.

The template is code from elsewhere: it runs in Jinja's immutable sandbox, with the globals and filters that
`transformers` gives it, and bounds on its output, its loops and calls, its time, and what one operation makes.

What clients send is text, not code. A spelling of a control token in it stays plain text: before rendering, a *guard*,
one private-use character that occurs nowhere in the input, is put into every such spelling, and into what is the
beginning or the end of one at the border of a string, lest two strings join to one. After rendering, whatever is still
spelled correctly was written by the template; the tokenizer marks that, the guards are taken out, and the whole is
tokenised in one call, so that ordinary conversations give exactly the ids that `transformers` gives. Three limits:
`role` and `type` must be plain names, for templates do build tokens from roles; a template that deletes text from
within a client's string may join its rest to a spelling; and in what the assistant said, tokens that are not special
in tokenizer.json (such as <think>) stay tokens, for templates look for them.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import jinja2

from penstock.engine.template_sandbox import TemplateSandbox
from penstock.engine.tokenizer import Tokenizer
from penstock.errors import InvalidDeployment, InvalidRequest

MAX_OUTPUT_CHARS: Final = 32_000_000
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_END_MARK: Final = 3
"""Guards in a row that mark where a last message ends that is to go on; elsewhere there are two at most."""
_LISTS: Final = (list, tuple)
_KEYS: Final = ("role", "content", "name", "type", "text", "tool_calls", "tool_call_id", "reasoning_content")
"""Of messages, nearly always."""
_RESERVED: Final = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class ChatTemplate:
    """One compiled template, and the tokenizer whose control tokens it writes."""

    def __init__(self, tokenizer: Tokenizer, source: str) -> None:
        """Raises InvalidDeployment: `source` is not a Jinja template."""
        self.source = source
        self._tokenizer = tokenizer
        self._environment = TemplateSandbox()
        try:
            self._template = self._environment.from_string(source)
        except jinja2.TemplateError as error:
            raise InvalidDeployment(
                field="chat_template",
                value=source,
                why=f"it is not valid Jinja: {error}",
                remedy="the template that came with the checkpoint",
            ) from error
        # Jinja's chain of two mappings is walked in Python for every rendering.
        self._template.globals = dict(self._template.globals)
        self._every = _Spellings(tokenizer.control_tokens)
        self._special = _Spellings(
            spelling for spelling, id in tokenizer.control_tokens.items() if id in tokenizer.special_ids
        )

    @classmethod
    def of(cls, tokenizer: Tokenizer, name: str = "default") -> ChatTemplate | None:
        """The checkpoint's template of this name, None if it has none. Raises InvalidDeployment."""
        source = tokenizer.settings.templates.get(name)
        return None if source is None else cls(tokenizer, source)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text, for people to read. Arguments and errors as of `encode`."""
        text, guard = self._render(messages, add_generation_prompt, tools, extra)
        return text.replace(guard, "")

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
        go_on: bool = False,
        max_tokens: int | None = None,
    ) -> list[int]:
        """The conversation as token ids. The template alone decides on the token of the beginning.

        Args:
            messages: `role`, `content` and whatever else the template reads; plain JSON values.
            add_generation_prompt: end with the header of the assistant's turn.
            tools: function descriptions as JSON. extra: more variables for the template (chat_template_kwargs).
            go_on: end within the last message, behind its `content`, a text, which the model is to go on with.
            max_tokens: the context; a conversation that cannot fit is refused before it is tokenised.

        Raises: InvalidRequest: the template refuses or cannot render this conversation, or it is too long.
        """
        text, guard = self._render(messages, add_generation_prompt, tools, extra, go_on)
        if max_tokens is not None:
            self._tokenizer.check_fits([text.replace(guard, "")], max_tokens, field="messages")
        marked = self._tokenizer.mark(text).replace(guard, "")
        return self._tokenizer.encode(marked, add_special_tokens=False)

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        extra: Mapping[str, Any] | None,
        go_on: bool = False,
    ) -> tuple[str, str]:
        """(text with guards, the guard)."""
        if extra and (taken := sorted(_RESERVED & extra.keys())):
            raise InvalidRequest(
                field="chat_template_kwargs", value=taken[0], why="this variable is set by the server",
                remedy="the field of the request with this name",
            )  # fmt: skip
        for message in messages:
            if not _NAME.match(str(message.get("role"))):
                raise InvalidRequest(
                    field="messages.role", value=message.get("role"), why="it is not the name of a role",
                    remedy="one of the roles the model knows, such as user",
                )  # fmt: skip
        guard = _guard([messages, tools, extra])
        guarded = [
            self._special.guard(message, guard)
            if message.get("role") == "assistant"
            else self._every.guard(message, guard)
            for message in messages
        ]
        if go_on:
            guarded[-1] = {**guarded[-1], "content": (guarded[-1].get("content") or "") + guard * _END_MARK}
        variables = {
            **self._tokenizer.settings.named_tokens,
            **self._every.guard(dict(extra or {}), guard),
            "messages": guarded,
            "tools": self._every.guard(list(tools), guard) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        parts, length = [], 0
        self._environment.run.begin(guard)
        try:
            for part in self._template.generate(variables):
                length += len(part)
                if length > MAX_OUTPUT_CHARS:
                    raise jinja2.TemplateError(f"the result is longer than {MAX_OUTPUT_CHARS} characters")
                parts.append(part)
        except Exception as error:  # a template can raise anything that Python can
            raise InvalidRequest(
                field="messages",
                value=f"{len(messages)} messages",
                why=f"the model's chat template refuses them: {error}",
                remedy="a conversation of the form this model was trained on",
                code="invalid_messages",
            ) from error
        text = "".join(parts)
        return (_up_to_mark(text, guard * _END_MARK) if go_on else text), guard


def _up_to_mark(text: str, mark: str) -> str:
    if mark not in text:
        raise InvalidRequest(
            field="messages", value="", why="the model's chat template does not show the end of the last message",
            remedy="a last message that is nothing but text", code="invalid_messages",
        )  # fmt: skip
    return text[: text.rindex(mark)]


class _Spellings:
    """The control tokens that client text must not spell, and where it would."""

    def __init__(self, spellings: Iterable[str]) -> None:
        tokens = sorted(spellings, key=len, reverse=True)
        self._whole = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
        self._beginnings = {token[:length] for token in tokens for length in range(1, len(token))}
        self._endings = {token[length:] for token in tokens for length in range(1, len(token))}
        self._longest = max(map(len, tokens), default=1) - 1
        self._first = _one_of(token[0] for token in tokens)
        self._last = _one_of(token[-1] for token in tokens)
        self._free_keys = frozenset(key for key in _KEYS if self._is_free(key))

    def guard(self, value: Any, guard: str) -> Any:
        """A copy of JSON value `value`, keys included, in which no string spells or helps to spell a control token."""
        if isinstance(value, str):
            return self._guard_text(value, guard)
        if isinstance(value, _LISTS):
            return [self.guard(part, guard) for part in value]
        if isinstance(value, dict) or isinstance(value, Mapping):  # noqa: SIM101 (the second takes ten times as long)
            free = self._free_keys
            return {
                key if key in free else self.guard(key, guard): part
                if key in ("role", "type") and isinstance(part, str) and _NAME.match(part)
                else self.guard(part, guard)
                for key, part in value.items()
            }
        return value

    def _guard_text(self, text: str, guard: str) -> str:
        if self._is_free(text) or not (places := sorted(set(self._places(text)))):
            return text
        borders = [0, *places, len(text)]
        return guard.join(text[start:end] for start, end in pairwise(borders))

    def _is_free(self, text: str) -> bool:
        """That there are no `_places`, as can be seen without looking closely: true of most texts."""
        head = len(text) - len(text.lstrip()) + self._longest
        return (
            self._first.search(text, max(0, len(text.rstrip()) - self._longest)) is None
            and self._last.search(text, 0, head) is None
            and self._whole.search(text) is None
        )

    def _places(self, text: str) -> Iterator[int]:
        """After the first character of what is, or may become, a spelling; before what may end one."""
        at = -1
        while (match := self._whole.search(text, at + 1)) is not None:
            at = match.start()
            yield at + 1
        # Templates strip: look at the ends with and without the space around the text.
        for end in {len(text), len(text.rstrip())}:
            for first in self._first.finditer(text, max(0, end - self._longest), end):
                if text[first.start() : end] in self._beginnings:
                    yield first.end()
        for start in {0, len(text) - len(text.lstrip())}:
            lasts = self._last.finditer(text, start, start + self._longest)
            if any(text[start : last.end()] in self._endings for last in lasts):
                yield start


def _one_of(characters: Iterable[str]) -> re.Pattern[str]:
    """Finds any of them."""
    return re.compile("|".join(sorted(map(re.escape, set(characters)))) or r"(?!)")


def _guard(values: Any) -> str:
    """A private-use character that occurs in no string of `values`."""
    for _ in range(64):
        guard = chr(0x100000 + secrets.randbelow(0xFFFE))
        if not _holds(values, guard):
            return guard
    raise InvalidRequest(
        field="messages", value="", why="they hold nearly all private-use characters", remedy="text without them"
    )


def _holds(value: Any, guard: str) -> bool:
    """Whether it is in one of the strings of a JSON value, keys included."""
    if isinstance(value, str):
        return guard in value
    if isinstance(value, dict) or isinstance(value, Mapping):  # noqa: SIM101
        for key, part in value.items():
            if _holds(key, guard) or _holds(part, guard):
                return True
    elif isinstance(value, _LISTS):
        for part in value:
            if _holds(part, guard):
                return True
    return False
