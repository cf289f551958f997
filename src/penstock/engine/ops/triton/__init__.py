"""The operations as Triton kernels for CUDA devices; kernels.py first, which is what the engine sees of them.

attention.py reads the paged cache in place, rows.py holds what is done row by row around the matrix products, which
stay with cuBLAS. On a CPU all of it runs in Triton's interpreter (TRITON_INTERPRET=1), for tests only: it is thousands
of times slower.
"""

from __future__ import annotations

from typing import Final

LONG_CHUNK: Final = 1024
"""Rows of a segment from which on attention takes larger tiles."""
