"""Loading leaves neither holes in the heap nor program text in memory."""

import subprocess
import sys

import pytest

from penstock.engine.process_memory import text_mappings

SMAPS = """\
7f0000000000-7f0000003000 r-xp 00001000 fe:00 1234    /usr/lib/libone.so
Rss:                  12 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
7f0000003000-7f0000005000 r-xp 00001000 fe:00 1235    /usr/lib/libpatched.so
Anonymous:             4 kB
7f0000005000-7f0000006000 r--p 00001000 fe:00 1235    /usr/lib/libone.so
Anonymous:             0 kB
7f0000006000-7f0000007000 rw-p 00000000 00:00 0
Anonymous:             0 kB
7ffc00000000-7ffc00002000 r-xp 00000000 00:00 0       [vdso]
Anonymous:             0 kB
7f0000007000-7f0000009000 r-xp 00000000 fe:00 1236    /opt/a folder/lib.so
Anonymous:             0 kB
7f0000009000-7f000000a000 r--p 00002000 fe:00 1236    /opt/a folder/lib.so
Anonymous:             4 kB
7f000000a000-7f000000b000 r--s 00000000 fe:00 1237    /opt/shared
Anonymous:             0 kB
"""

PROGRAM = """
import torch
from penstock.engine.process_memory import loading

def held():
    with open("/proc/self/smaps_rollup") as rollup:
        sizes = {words[0]: int(words[1]) / 1024 for words in map(str.split, rollup) if words[0].endswith(":")}
    return sizes["Anonymous:"], sizes["Rss:"] - sizes["Anonymous:"]

anonymous, files = held()
with loading():
    kept = []
    for _ in range(20):
        read = torch.ones(1 << 20)
        kept.append(read + 1)
        del read
after, files_after = held()
assert sum(int(one.sum()) for one in kept) == 20 * 2 << 20
print(after - anonymous, files, files_after)
"""


HOLES = """
import torch
from penstock.engine.process_memory import loading, trim

def held():
    with open("/proc/self/smaps_rollup") as rollup:
        return sum(int(words[1]) for words in map(str.split, rollup) if words[0] == "Anonymous:") / 1024

with loading():
    pass  # from here on working memory comes from the heap
before = held()
kept = [(torch.ones(1 << 20), torch.ones(1 << 16)) for _ in range(20)]
kept = [small for _, small in kept]
with_holes = held()
trim()
assert sum(int(one.sum()) for one in kept) == 20 << 16
print(with_holes - before, held() - before)
"""


def test_only_text_and_constants_that_are_as_their_file_has_them_are_dropped() -> None:
    assert text_mappings(SMAPS) == [(0x7F0000000000, 0x3000), (0x7F0000005000, 0x1000), (0x7F0000007000, 0x2000)]


@pytest.mark.skipif(sys.platform != "linux", reason="only done on Linux")
def test_what_loading_frees_is_given_back_and_what_it_keeps_is_whole() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    grown, files_before, files_after = (float(word) for word in done.stdout.split())
    assert grown < 80 + 8  # MiB: what is kept, without the 4 MiB that were read before each
    assert files_after < files_before / 2


@pytest.mark.skipif(sys.platform != "linux", reason="only done on Linux")
def test_trimming_gives_back_what_lies_free_between_what_is_kept() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    with_holes, trimmed = (float(word) for word in done.stdout.split())
    assert with_holes > 80  # MiB: 4 of each hole, 0.25 of each that is kept
    assert trimmed < 5 + 3


@pytest.mark.skipif(sys.platform != "linux", reason="pages are Linux's to give")
def test_the_pool_of_keys_and_values_asks_for_large_pages():
    advised = """
import torch
from types import SimpleNamespace
from penstock.engine.pool import KVPool
pool = KVPool(SimpleNamespace(layers=4, kv_heads=2, head_dim=64), blocks=2000, block_tokens=16, host_blocks=0,
              dtype=torch.float32, device=torch.device("cpu"))
middle, inside = pool.device.data_ptr() + pool.device.nbytes // 2, False
for line in open("/proc/self/smaps"):
    words = line.split()
    if not words[0].endswith(":"):
        first, last = (int(one, 16) for one in words[0].split("-"))
        inside = first <= middle < last
    elif inside and words[0] == "VmFlags:":
        print("hg" in words)
"""
    done = subprocess.run([sys.executable, "-c", advised], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]
