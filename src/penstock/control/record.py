"""Small records of the hot path: plain classes, which compile to structs (penstock/compiled), compared by value."""

from __future__ import annotations


class Record:
    """Equal when of the same class with equal fields; prints as it would be written."""

    __slots__ = ()

    def fields(self) -> tuple[object, ...]:
        """Values in the order of the constructor's arguments."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and type(self) is type(other) and self.fields() == other.fields()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.fields())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.fields()))})"
