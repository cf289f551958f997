"""What a model says to itself before it answers: which models do, where it begins and ends, and how it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final

from penstock.runtime import Tokenizer
from penstock.serve.tools.parts import Reasoning
from penstock.serve.tools.source import Reading, Source


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The texts around the reasoning."""

    name: str
    opener: str
    closer: str


THINK: Final = ReasoningFormat("think", "<think>", "</think>")
FORMATS: Final[dict[str, ReasoningFormat]] = {
    one.name: one
    for one in (
        THINK,
        ReasoningFormat("brackets", "[THINK]", "[/THINK]"),
        ReasoningFormat("seed", "<seed:think>", "</seed:think>"),
        ReasoningFormat("granite", "Here is my thought process:", "Here is my response:"),
    )
}
"""Qwen 3, DeepSeek R1 and most others; Magistral; Seed-OSS; Granite 3."""


class Begun(Enum):
    """What the prompt, as the template ended it, says of the reasoning."""

    NO = 0
    """The output may begin with it, or do without."""
    YES = 1
    """The output is reasoning until it is closed."""
    CLOSED = 2
    """There will be none."""


@lru_cache(maxsize=8)
def choose_reasoning(setting: str, tokenizer: Tokenizer) -> ReasoningFormat | None:
    """The format named by `setting`; for "auto" the one whose texts the model's vocabulary or template has; or None."""
    if setting == "none":
        return None
    if setting != "auto":
        return FORMATS[setting]
    template, control = tokenizer.settings.template_text, tokenizer.control_tokens
    for one in FORMATS.values():
        if (one.opener in control and one.closer in control) or (one.opener in template and one.closer in template):
            return one
    return None


def begun(form: ReasoningFormat, prompt_end: str, answer: str = "") -> Begun:
    """What `prompt_end`, the last of the prompt's text with its control tokens, says; or `answer`, a begun one that
    is to go on.

    >>> begun(THINK, "...<think>"), begun(THINK, "...<think></think>"), begun(THINK, "...")
    (<Begun.YES: 1>, <Begun.CLOSED: 2>, <Begun.NO: 0>)
    >>> begun(THINK, "...", "<think>So"), begun(THINK, "...", "<think>So</think>The"), begun(THINK, "...", "The")
    (<Begun.YES: 1>, <Begun.CLOSED: 2>, <Begun.CLOSED: 2>)
    """
    if answer.strip():
        return Begun.YES if answer.rfind(form.opener) > answer.rfind(form.closer) else Begun.CLOSED
    end = prompt_end.rstrip()
    return Begun.YES if end.endswith(form.opener) else Begun.CLOSED if end.endswith(form.closer) else Begun.NO


def read_reasoning(source: Source, form: ReasoningFormat, state: Begun, closed: Callable[[], None]) -> Reading:
    """Read up to the end of the reasoning, and the white space after it; what comes then is the answer.

    `closed` is called where the reasoning ends. Returns whether there was any.
    """
    if state is Begun.CLOSED:
        return False
    if state is Begun.NO:
        space = yield from source.leading_space()
        if not (yield from source.begins(form.opener)):
            source.say(space)
            return False

    def say(text: str) -> None:
        if text:
            source.parts.append(Reasoning(text))

    yield from source.skip_space()
    if (yield from source.say_until(form.closer, say=say)):
        closed()
        yield from source.skip_space()
    return True
