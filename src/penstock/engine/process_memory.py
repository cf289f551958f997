"""What loading leaves behind in a process, kept small: glibc's free memory, and the program text it ran through once.

Tensors that are read and packed come and go between those that stay. In glibc's heap they leave holes as large as they
were, which later steps fill with their working memory, page by page. So while a model loads, every large tensor gets
pages of its own, which leave with it; afterwards working memory comes from the heap, which gives no page back between
two steps. Importing torch and packing weights touch 100 MB of program text and constants that no step needs again:
those pages belong to files, and come back by themselves when they are wanted.

On systems other than Linux with glibc nothing is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE_BYTES: Final = 1 << 20
_LARGEST_BYTES: Final = 32 << 20
"""The most that glibc accepts as the limit between its heap and pages of a block's own."""
_DONTNEED, _HUGEPAGE = 4, 14  # mman.h
_PAGE: Final = 4096


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """While the block runs, large tensors have pages of their own; after it, what was freed goes back to the system."""
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_BYTES)
        settle()


def settle() -> None:
    """Give the system what only the work up to now needed: free pages of the heap, program text and constants."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)
        _drop_text(libc)


def trim() -> None:
    """Give the system the pages of glibc's heap that hold nothing now, which takes it about a millisecond."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def ask_for_large_pages(address: int, size: int) -> None:
    """Ask for pages of 2 MiB for memory that nothing was written to: reading it at random takes a tenth less time.

    What is written to a page then costs as much memory as the page. Where the system has none, nothing changes.
    """
    libc = _glibc()
    first, last = -(-address // _PAGE) * _PAGE, (address + size) // _PAGE * _PAGE
    if libc is not None and first < last:
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        libc.madvise(first, last - first, _HUGEPAGE)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if libc is not None and hasattr(libc, "mallopt") else None


def _drop_text(libc: ctypes.CDLL) -> None:
    """Unmap the pages of program text, unless something was written to them (by the loader or a debugger, say)."""
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    with contextlib.suppress(OSError):
        for first, size in text_mappings(Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")):
            libc.madvise(first, size, _DONTNEED)


def text_mappings(smaps: str) -> list[tuple[int, int]]:
    """Address and bytes of each mapping in /proc/PID/smaps that is a file's text or constants, as the file has them."""
    found: list[tuple[int, int]] = []
    text: tuple[int, int] | None = None
    for line in smaps.splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            first, last = (int(address, 16) for address in words[0].split("-"))
            is_text = words[1] in ("r-xp", "r--p") and len(words) > 5 and words[5].startswith("/")
            text = (first, last - first) if is_text else None
        elif words[0] == "Anonymous:" and text is not None and words[1] == "0":
            found.append(text)
    return found
