"""The matrices of a model's products in the forms that multiply fastest: packed once after load, one class per form.

`Weight` is all that models and kernels know of them. Start with formats.py, which says what each `dtype:` of a
deployment stores and computes. torch is not imported here: formats.py is asked for sizes before anything heavy loads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor


class Weight(Protocol):
    """A matrix [O, I] in a form of its own, which knows how to multiply."""

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I): what comes out and what goes in."""

    @property
    def nbytes(self) -> int:
        """Memory it holds, scales and padding included."""

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [T, I] times this matrix transposed, plus bias [O]: a new tensor [T, O] in x's dtype."""


Matrix: TypeAlias = "Tensor | Weight"
"""A plain tensor [O, I], which the kernels multiply in their own way, or a packed one."""

Pack: TypeAlias = "Callable[[Tensor], Matrix]"
"""Makes a matrix [O, I] of a product what it is to be; gives it back unchanged where that is best."""
