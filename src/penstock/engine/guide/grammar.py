"""What a client may ask of the text, as grammars in llguidance's dialect of Lark. Pure text: nothing is compiled here.

Each function gives a whole grammar with the rule `start`. Tokens are never forced: any token is allowed whose bytes the
grammar allows, as the model was trained to split text, and no tokenizer is asked while a mask is computed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

_OPTIONS: Final = '%llguidance {"no_forcing": true}\n'
_WHITE_SPACE: Final = r"( |\n {0,32}|\n\t{0,8})"
"""Between the tokens of JSON: a space, or a line break and an indentation. A model that is lost emits no more of it."""
_BEFORE: Final = r"/[ \t\n\r]{0,8}/"


def json_value(schema: Any, *, lenient: bool = False) -> str:
    """`%json {...}`: a rule's right side that is JSON of this schema (an object, or true or false).

    `lenient`: keywords that the library cannot enforce are passed over; without it they are an error when compiled.
    """
    rules = dict(schema) if isinstance(schema, Mapping) else {} if schema is True else {"not": {}}
    rules["x-guidance"] = {"whitespace_pattern": _WHITE_SPACE, "lenient": lenient, "coerce_one_of": True}
    return "%json " + json.dumps(rules, ensure_ascii=False)


def json_schema(schema: Any, *, lenient: bool = False) -> str:
    """JSON that obeys `schema`."""
    return rules(f"start: {json_value(schema, lenient=lenient)}")


def choice(texts: Sequence[str]) -> str:
    """One of `texts`, letter for letter."""
    return rules("start: " + " | ".join(map(literal, texts)))


def regex(pattern: str) -> str:
    """Text that the expression matches as a whole, in the syntax of Rust's regex; never a backtracking one."""
    import llguidance

    return rules(f"start: /{llguidance.regex_to_lark(pattern)}/")


def lark(text: str) -> str:
    """A client's own grammar, in Lark or in GBNF as llama.cpp has it. Raises ValueError: it is neither."""
    from llguidance import gbnf_to_lark

    try:
        return f"{gbnf_to_lark.any_to_lark(text) if '::=' in text else text}\n{_OPTIONS}"
    except Exception as error:
        raise ValueError(f"it is neither Lark nor GBNF: {error}") from error


def rules(lines: str) -> str:
    """Rules that are Lark already, with this package's options."""
    return _OPTIONS + lines


def after_space(grammar: str) -> str:
    """`grammar`, with a little white space before it: what stands between the end of reasoning and the answer."""
    outer = {"lark_grammar": f"{_OPTIONS}start: {_BEFORE} @answer"}
    return json.dumps({"grammars": [outer, {"name": "answer", "lark_grammar": grammar}]}, ensure_ascii=False)


def literal(text: str) -> str:
    r"""`text` as a terminal.

    >>> literal('say "hi"')
    '"say \\"hi\\""'
    """
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
