"""Counts on the command line, written as in the deployment file: 100, 25k, 32Ki, with its bounds and its words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter, ValidationError

from penstock.errors import BadInput
from penstock.units import Count, reason

METAVAR: Final = "COUNT"


def count(flag: str, *, least: int) -> dict[str, Any]:
    """Keywords for the `typer.Option` of an option `flag` that takes `least` or more. Their parser raises BadInput."""
    return {"parser": _parser(flag, least), "metavar": METAVAR}


def _parser(flag: str, least: int) -> Callable[[str | int], int]:
    adapter: TypeAdapter[int] = TypeAdapter(Annotated[Count, Field(ge=least)])

    def parse(text: str | int) -> int:
        try:
            return adapter.validate_python(text)
        except ValidationError as error:
            why = reason(error.errors()[0]["msg"])
            raise BadInput(
                field=flag, value=text, why=why, remedy=f"{least} or more, such as {max(least, 8192)} or 25k"
            ) from None

    return parse
