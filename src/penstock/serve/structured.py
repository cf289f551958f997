"""What a client wants of the text (`response_format`, vLLM's and SGLang's names for it), as one job for the checker.

The bounds are checked here; whether a schema or a grammar can be enforced is tried in another process
(runtime/grammar_check.py), and never on the event loop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from penstock.control.request import Guide
from penstock.errors import InvalidRequest
from penstock.runtime import grammar
from penstock.runtime.grammar_check import GrammarJob
from penstock.serve.errors import invalid
from penstock.serve.reasoning import Begun, ReasoningFormat

if TYPE_CHECKING:
    from penstock.deployment.limits import Limits
    from penstock.serve.schema import Body

_OBJECT: Final = {"type": "object"}
_OPTIONS: Final = frozenset({"json", "json_object", "regex", "choice", "grammar"})
_GUIDED: Final = (
    ("guided_json", "schema"), ("guided_regex", "regex"), ("guided_choice", "choice"), ("guided_grammar", "lark"),
    ("json_schema", "schema"), ("regex", "regex"), ("ebnf", "lark"),
)  # fmt: skip
_FIELDS: Final = ("response_format", "structured_outputs", *(name for name, _ in _GUIDED))
_REMEDY: Final = "one of them"


def wanted(body: Body, limits: Limits) -> GrammarJob | None:
    """The constraint of a body, to be tried; None if it has none.

    Raises:
        InvalidRequest: of a kind that nobody knows, beyond a bound, or two at once.
    """
    if all(getattr(body, name) is None for name in _FIELDS):
        return None
    asked = [*_response_format(body), *_guided(body, limits), *_structured_outputs(body, limits)]
    if not asked:
        return None
    if len(asked) > 1:
        raise InvalidRequest(
            field=asked[1][0], value="", why=f"{asked[0][0]} constrains the text already", remedy=_REMEDY
        )
    field, kind, value, strict = asked[0]
    return _KINDS[kind](field, value, strict, limits)


def guide(grammar_text: str, form: ReasoningFormat | None, state: Begun) -> Guide:
    """The guide of one request: the grammar holds for what comes after the reasoning."""
    if form is None or state is Begun.CLOSED:
        return Guide(grammar=grammar_text)
    return Guide(
        grammar=grammar.after_space(grammar_text), after=form.closer,
        opener=form.opener if state is Begun.NO else "",
    )  # fmt: skip


def check_schema(field: str, schema: Any, limits: Limits) -> None:
    """Raises InvalidRequest: it is no JSON schema, or beyond the bounds of size and depth."""
    if not isinstance(schema, dict | bool):
        raise invalid(field, schema, "it is not a JSON schema", "an object", "invalid_schema")
    # Properties have a level of their own in JSON: two of its levels are one of the schema.
    if levels(schema, 2 * limits.schema_depth) > 2 * limits.schema_depth:
        raise invalid(
            field, "", f"it is more than {limits.schema_depth} levels deep", "a flatter one, or one with $defs",
            "invalid_schema",
        )  # fmt: skip
    size = len(json.dumps(schema, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    if size > limits.schema_bytes:
        raise invalid(field, "", f"it has {size} bytes", f"at most {limits.schema_bytes} bytes", "invalid_schema")


def levels(value: Any, most: int) -> int:
    """Levels of objects and lists, looked at up to one more than `most`, level by level: never recursive."""
    level, depth = [value], 0
    while depth <= most:
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return depth
        depth += 1
    return depth


Asked = tuple[str, str, Any, bool]
"""Field, kind, value, and whether what cannot be enforced is an error."""


def _response_format(body: Body) -> list[Asked]:
    form, field = body.response_format, "response_format"
    if form is None:
        return []
    match form.get("type"):
        case "text":
            return []
        case "json_object":
            return [(field, "schema", form.get("schema") or _OBJECT, False)]  # some clients put a schema there
        case "json_schema":
            inner = form.get("json_schema")
            if not isinstance(inner, dict):
                raise invalid(f"{field}.json_schema", inner, "it is not an object", '{"name": ..., "schema": {...}}')
            name = inner.get("name")
            if not (isinstance(name, str) and 0 < len(name) <= 64):
                raise invalid(f"{field}.json_schema.name", name, "no name", "1 to 64 characters")
            schema = inner.get("schema")
            return [(f"{field}.json_schema.schema", "schema", _OBJECT if schema is None else schema,
                     inner.get("strict") is True)]  # fmt: skip
        case other:
            raise invalid(f"{field}.type", other, "unknown", "text, json_object or json_schema")


def _guided(body: Body, limits: Limits) -> list[Asked]:
    found: list[Asked] = []
    for name, kind in _GUIDED:
        value = getattr(body, name)
        if value is not None:
            found.append((name, kind, _parsed(name, value, limits) if kind == "schema" else value, False))
    return found


def _structured_outputs(body: Body, limits: Limits) -> list[Asked]:
    options, field = body.structured_outputs, "structured_outputs"
    if options is None:
        return []
    found: list[Asked] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        if name not in _OPTIONS:
            raise invalid(f"{field}.{name}", value, "this server does not support it", "one of " + ", ".join(
                sorted(_OPTIONS)), "unsupported_parameter")  # fmt: skip
        where = f"{field}.{name}"
        match name:
            case "json":
                found.append((where, "schema", _parsed(where, value, limits), False))
            case "json_object":
                found.append((where, "schema", _OBJECT, False))
            case "grammar":
                found.append((where, "lark", value, False))
            case _:
                found.append((where, name, value, False))
    return found


def _parsed(field: str, value: Any, limits: Limits) -> Any:
    """A schema that may come as text, which is parsed only if it is a short one."""
    if not isinstance(value, str):
        return value
    if len(value) > limits.schema_bytes:
        raise invalid(
            field, "", f"it has {len(value)} bytes or more", f"at most {limits.schema_bytes} bytes", "invalid_schema"
        )
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise invalid(field, value, f"it is not JSON: {error}", "a JSON schema", "invalid_schema") from None


def _schema_job(field: str, schema: Any, strict: bool, limits: Limits) -> GrammarJob:
    check_schema(field, schema, limits)
    text = grammar.json_schema(schema, lenient=not strict)
    return GrammarJob(field=field, grammar=text, schemas=((field, schema, not strict),))


def _regex_job(field: str, pattern: Any, strict: bool, limits: Limits) -> GrammarJob:
    _check_text(field, pattern, limits)
    return GrammarJob(field=field, regex=pattern, code="invalid_regex")


def _choice_job(field: str, choices: Any, strict: bool, limits: Limits) -> GrammarJob:
    if not (isinstance(choices, list) and choices and all(isinstance(one, str) and one for one in choices)):
        raise invalid(field, choices, "it is not a list of texts", "at least one text, none of them empty")
    _check_text(field, "".join(choices), limits)
    return GrammarJob(field=field, grammar=grammar.choice(choices), code="invalid_choice")


def _lark_job(field: str, text: Any, strict: bool, limits: Limits) -> GrammarJob:
    _check_text(field, text, limits)
    return GrammarJob(field=field, lark=text, code="invalid_grammar")


def _check_text(field: str, text: Any, limits: Limits) -> None:
    if not isinstance(text, str) or not text:
        raise invalid(field, text, "it is not a text", "some text")
    size = len(text.encode("utf-8", "replace"))
    if size > limits.schema_bytes:
        raise invalid(field, "", f"it has {size} bytes", f"at most {limits.schema_bytes} bytes")


_KINDS: Final[Mapping[str, Callable[[str, Any, bool, Limits], GrammarJob]]] = {
    "schema": _schema_job,
    "regex": _regex_job,
    "choice": _choice_job,
    "lark": _lark_job,
}
