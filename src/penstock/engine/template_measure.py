"""How large a value of a chat template is before it becomes text or is compared.

A list that holds one list three hundred times, which holds another three hundred times, takes no memory: its text does,
and so does the time of whoever walks over it. Here each part counts as often as it would be shown.
"""

from __future__ import annotations

from collections.abc import Collection, ItemsView, KeysView, ValuesView
from typing import Any, Final, TypeVar

import jinja2
from jinja2.utils import Namespace

MAX_TEXT: Final = 32_000_000
"""Characters of one string."""
MAX_PARTS: Final = 250_000
"""Of one value that is shown or compared, with the parts of its parts."""
_ESCAPED: Final = 2
"""Characters that one of a string's becomes inside a list, with some room: at worst ten, in a text of 160 MB."""
_HOLDERS: Final = (list, tuple, dict, set, frozenset, KeysView, ValuesView, ItemsView, Namespace)

Value = TypeVar("Value")


def looked_at(value: Value) -> Value:
    """`value`, which may be shown or compared. Raises TemplateError."""
    if type(value) is not str and isinstance(value, _HOLDERS):  # a text in nearly all cases; the views are slow to tell
        _measure((value,))
    return value


def look_at(*values: Any) -> None:
    """Raises TemplateError: one of `values` is too large to be shown or compared."""
    for value in values:
        if isinstance(value, _HOLDERS):
            _measure((value,))


def shown_length(value: Any) -> int:
    """Characters of `value` as a text, about. Raises TemplateError."""
    return len(value) if isinstance(value, str) else _measure((value,))


def text(length: int) -> None:
    """Raises TemplateError: a string would be too long."""
    if length > MAX_TEXT:
        refuse(f"a text longer than {MAX_TEXT} characters")


def refuse(what: str) -> None:
    """Raises TemplateError, always."""
    raise jinja2.TemplateError(f"it asks for {what}")


def _measure(values: Collection[Any]) -> int:
    parts = length = 0
    levels = [values]
    while levels:
        level = levels.pop()
        parts += len(level)
        if parts > MAX_PARTS:
            refuse(f"a value of more than {MAX_PARTS} parts as text, or in a comparison")
        for one in level:
            if isinstance(one, str | bytes):
                length += _ESCAPED * len(one)
            elif isinstance(one, int):
                length += one.bit_length() // 3
            elif isinstance(one, dict):
                levels += (one.keys(), one.values())
            elif isinstance(one, Namespace):
                levels.append(vars(one)["_Namespace__attrs"].values())
            elif isinstance(one, _HOLDERS):
                levels.append(one)
        text(length)
    return length + 4 * parts
