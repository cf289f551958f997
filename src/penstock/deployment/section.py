"""What all sections of the file have in common."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """A part of the file: unknown keys are errors, values never change after loading, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _a_number_is_no_yes(cls, value: object, info: ValidationInfo) -> object:
        """YAML reads `on` and `yes` as true, which counts as 1 where it meets a number."""
        if isinstance(value, bool) and not _holds_bool(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError(f"it is {str(value).lower()}, a yes or no (quote it if text was meant)")
        return value


def _holds_bool(kind: Any) -> bool:
    return kind is bool or any(_holds_bool(part) for part in get_args(kind))
