"""What one operation of a chat template may make: sizes are looked at before, since one call can ask for more memory
than there is. Together with the count of turns and the time limit (template_sandbox.py) this bounds a rendering.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from string import Formatter
from typing import Any, Final

from penstock.engine.template_measure import look_at, refuse, shown_length, text

MAX_ITEMS: Final = 1_000_000
"""Of one list, and of a string or list that is repeated."""
MAX_WIDTH: Final = 10_000
"""Of padding, indentation, a number in a format."""
MAX_BITS: Final = 8192
"""Of an integer."""
MAX_EXPONENT: Final = 64
NO_METHODS: Final = frozenset({"translate", "maketrans", "to_bytes", "from_bytes"})
"""Of strings and numbers: no template needs them, and their results have any size."""
NO_FILTERS: Final = ("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr", "filesizeformat", "forceescape")
"""For web pages, or slow on long text."""
_WIDTHS: Final = frozenset({"ljust", "rjust", "center", "zfill"})
_SIZED: Final = frozenset({"center", "indent", "batch", "slice", "truncate", "format", "tojson"})
_SHOWN: Final = frozenset({
    "string", "upper", "lower", "capitalize", "title", "trim", "replace", "center", "indent", "wordcount", "escape",
    "e", "safe", "urlencode", "truncate", "format", "join", "tojson", "min", "max", "sort", "unique", "groupby",
    "dictsort", "sum", "int", "float",
})  # fmt: skip
"""Filters that make their value a text, or compare what is in it."""
_LONG_NUMBER: Final = re.compile(r"[0-9]{5}|\*")


def method(
    owner: str | bytes | int, name: str, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Look at a call of a string's or number's method. Returns the arguments to call it with. Raises TemplateError."""
    if name in NO_METHODS:
        refuse(f"the method {name}")
    if isinstance(owner, int):
        return arguments
    given = (*arguments, *named.values())
    match name:
        case "join" if arguments:
            parts = arguments[0] if isinstance(arguments[0], str) else list(islice(arguments[0], MAX_ITEMS + 1))
            joined(parts, len(owner))
            return (parts,)
        case "split" | "rsplit":
            marks = [given[0]] if given and isinstance(given[0], str) and given[0] else " \n\t\r\v\f\x1c\x1d\x1e\x1f"
            parted(owner, marks)
        case "splitlines":
            parted(owner, "\n\r\v\f\x1c\x1d\x1e")
        case "replace" if len(arguments) > 1:
            replaced(owner, *arguments[:2])
        case "expandtabs":
            tabs = owner.count("\t") if isinstance(owner, str) else owner.count(b"\t")
            text(len(owner) + tabs * max((one for one in given if isinstance(one, int)), default=8))
        case _ if name in _WIDTHS:
            widths(given)
    return arguments


def filtered(name: str, value: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """Look at a filter's arguments. Returns the value to filter. Raises TemplateError."""
    given = (*arguments, *named.values())
    if name in _SIZED:
        widths(given)
    if name in _SHOWN:
        value = bounded_items(value)
        look_at(value, *given)
    match name:
        case "replace" if not isinstance(value, str):
            value = str(value)
            replaced(value, *arguments[:2])
        case "sum":
            # Numbers are added; lists would be joined to ever longer ones.
            if any(isinstance(one, list | tuple) for one in given):
                refuse("a sum of lists")
        case "replace" if isinstance(value, str) and len(arguments) > 1:
            replaced(value, *arguments[:2])
        case "join":
            value = list(islice(value, MAX_ITEMS + 1))
            separator = given[0] if given and isinstance(given[0], str) else ""
            joined(value, len(separator))
        case "indent" if isinstance(value, str):
            width = next((one for one in given if isinstance(one, int | str)), 4)
            text(len(value) + (value.count("\n") + 1) * (width if isinstance(width, int) else len(width)))
        case "tojson":
            if any(isinstance(one, int) and one > 64 for one in given):
                refuse("an indentation above 64")
        case "format" if isinstance(value, str):
            pattern(value)
            filled(value, "%", given)
        case "list":
            value = bounded_items(value)
            items(len(value) if hasattr(value, "__len__") else 0)
        case "reverse":
            value = bounded_items(value)
    return value


def operation(operator: str, left: Any, right: Any) -> None:
    """Look at a binary operation. Raises TemplateError."""
    numbers = isinstance(left, int) and isinstance(right, int)
    match operator:
        case "**":
            if isinstance(right, int | float) and abs(right) > MAX_EXPONENT:
                refuse(f"an exponent above {MAX_EXPONENT}")
            if numbers:
                bits(left.bit_length() * abs(right))
        case "*" if numbers:
            bits(left.bit_length() + right.bit_length())
        case "*":
            for one, times in ((left, right), (right, left)):
                repeats = isinstance(one, str | bytes | list | tuple) and isinstance(times, int)
                if repeats and len(one) * times > MAX_ITEMS:
                    refuse(f"a product of more than {MAX_ITEMS} characters or items")
        case "+" if isinstance(left, str | bytes) and isinstance(right, str | bytes):
            text(len(left) + len(right))
        case "+" if isinstance(left, list | tuple) and isinstance(right, list | tuple):
            items(len(left) + len(right))
        case "%" if isinstance(left, str | bytes):
            source = left if isinstance(left, str) else left.decode("latin-1")
            pattern(source)
            filled(source, "%", right if isinstance(right, tuple) else (right,))


def concatenated(parts: Sequence[Any]) -> str:
    """The `~` of templates. Raises TemplateError."""
    look_at(*parts)
    strings = [str(part) for part in parts]
    text(sum(map(len, strings)))
    return "".join(strings)


def pattern(source: str) -> None:
    """Of a format: no width that is written out long, and none that an argument chooses. Raises TemplateError."""
    if _LONG_NUMBER.search(source):
        refuse(f"a width above {MAX_WIDTH - 1}, or one that an argument chooses, in a format")


def formatted(source: str, arguments: Iterable[Any]) -> None:
    """Of `str.format`: besides, no width that comes from a field inside of one. Raises TemplateError."""
    pattern(source)
    if any("{" in (spec or "") for _, _, spec, _ in Formatter().parse(source)):
        refuse("a width that an argument chooses, in a format")
    filled(source, "{", arguments)


def filled(source: str, sign: str, arguments: Iterable[Any]) -> None:
    """Of a format: each place may show the longest of the arguments. Raises TemplateError."""
    text(len(source) + source.count(sign) * max(map(shown_length, arguments), default=0))


def parted(source: str | bytes, marks: Iterable[str]) -> None:
    """Look at how many parts a text may fall into, at most. Raises TemplateError."""
    if isinstance(source, str) and len(source) > MAX_ITEMS:
        plain = source.isascii() or isinstance(marks, list)
        items(sum(map(source.count, marks)) if plain else len(source))


def replaced(source: Any, old: Any, new: Any) -> None:
    if isinstance(source, str) and isinstance(old, str) and isinstance(new, str) and len(new) > len(old):
        text(len(source) + source.count(old) * (len(new) - len(old)))


def joined(parts: Any, separator: int) -> None:
    if isinstance(parts, list | tuple):
        items(len(parts))
        text(sum(len(part) for part in parts if isinstance(part, str)) + separator * len(parts))
    elif isinstance(parts, str):
        text(len(parts) * (1 + separator))


def bounded_items(value: Any) -> Any:
    """Generators become lists here, so that there is an end to them."""
    if not hasattr(value, "__next__"):
        return value
    found = list(islice(value, MAX_ITEMS + 1))
    items(len(found))
    return found


def widths(given: Iterable[Any]) -> None:
    if any(isinstance(one, int) and one > MAX_WIDTH for one in given):
        refuse(f"a width above {MAX_WIDTH}")


def items(count: int) -> None:
    if count > MAX_ITEMS:
        refuse(f"a list of more than {MAX_ITEMS} items")


def bits(count: int) -> None:
    if count > MAX_BITS:
        refuse(f"an integer of more than {MAX_BITS} bits")
