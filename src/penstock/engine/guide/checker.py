"""A process that tries grammars before anything else sees them: `python -m penstock.engine.guide.checker`.

One JSON object per line on standard input, one on standard output. A grammar that does not come to an end, exhausts the
stack or the memory takes only this process with it; whoever started it ends it after its time and starts another.

    {"seconds": 2.0, "schemas": [[field, schema, lenient], ...], "grammar": text, "lark": text, "regex": text}
    {"field": "", "why": "", "grammar": text}

`seconds` of CPU are all it gets: then the kernel ends the process, however busy the machine is with others meanwhile.
`schemas` are tried one by one, so that an error can name its place; then `grammar` as a whole, up to its first mask.
`lark`, `regex`: a client's own instead of `grammar`; the answer has what became of it.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import llguidance

from penstock.engine.guide import grammar as texts
from penstock.engine.guide.vocabulary import LIMITS

MEMORY_BYTES: Final = 2 * 2**30
_MAX_TRIED: Final = 300
"""Schemas inside a schema that are tried to find the one that is wrong."""
_HOLD_ONE: Final = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_HOLD_MANY: Final = (
    "$defs",
    "definitions",
    "properties",
    "patternProperties",
    "anyOf",
    "allOf",
    "oneOf",
    "prefixItems",
)
_WHERE: Final = re.compile(r"^(at )?\d+\(\d+\): (failed to compile JSON schema: )?")
_NOTHING: Final = "NoExtensionBias"
"""What the library says of a grammar without any text, as {"$ref": "#"}."""
_QUOTED: Final = re.compile(r"\n *\d+ \|.*", re.DOTALL)


def check(job: dict[str, Any]) -> dict[str, str]:
    """The answer to one job."""
    for field, schema, lenient in job.get("schemas", ()):
        if why := _error(texts.json_schema(schema, lenient=lenient)):
            where, why = _place(schema, lenient, why)
            return {"field": field + where, "why": why}
    text = job.get("grammar", "")
    if job.get("regex"):
        text = texts.regex(job["regex"])
    if job.get("lark"):
        try:
            text = texts.lark(job["lark"])
        except ValueError as error:
            return {"field": "", "why": str(error)}
    if text:
        if why := _error(text):
            return {"field": "", "why": why}
        matcher = llguidance.LLMatcher(_bytes(), text, log_level=0, limits=LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error():
            why = _first_line(matcher.get_error())
            return {"field": "", "why": "no text obeys it" if _NOTHING in why else why}
    return {"field": "", "why": "", "grammar": text}


def _bytes() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer("byte")


def _error(text: str) -> str:
    return _first_line(llguidance.LLMatcher.validate_grammar(text, limits=LIMITS))


def _first_line(message: str) -> str:
    """Without places in a text that the client never saw, and of a length that fits an answer."""
    return "" if message.startswith("WARNING") else " ".join(_WHERE.sub("", _QUOTED.sub("", message)).split())[:300]


def _place(schema: Any, lenient: bool, why: str) -> tuple[str, str]:
    """The innermost schema that is wrong by itself: its path, and what is wrong with it."""
    shared = {name: schema[name] for name in ("$defs", "definitions") if isinstance(schema, dict) and name in schema}
    where, tried = "", 0
    while isinstance(schema, dict):
        for step, child in _children(schema):
            tried += 1
            if tried > _MAX_TRIED:
                return where, why
            alone = {**child, **shared} if isinstance(child, dict) and step.split(".")[1] not in shared else child
            if inner := _error(texts.json_schema(alone, lenient=lenient)):
                where, why, schema = where + step, inner, child
                break
        else:
            break
    return where, why


def _children(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in _HOLD_ONE:
        if isinstance(schema.get(name), dict):
            yield f".{name}", schema[name]
    for name in _HOLD_MANY:
        held = schema.get(name)
        if isinstance(held, dict):
            yield from ((f".{name}.{key}", child) for key, child in held.items() if isinstance(child, dict))
        elif isinstance(held, list):
            yield from ((f".{name}[{at}]", child) for at, child in enumerate(held) if isinstance(child, dict))


def main() -> None:
    """Answer until the input ends."""
    with suppress(ValueError, OSError):  # a machine may allow less already
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for line in sys.stdin.buffer:
        try:
            job = json.loads(line)
            signal.setitimer(signal.ITIMER_PROF, job["seconds"])
            answer = check(job)
        except Exception as error:  # noqa: BLE001 - the library's errors have no base of their own
            answer = {"field": "", "why": f"it cannot be compiled: {error}"[:300]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
