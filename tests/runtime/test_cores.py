"""A container's share counts, and not the cores of the machine around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.runtime.cores import own_cores, quota, usable_cores


@pytest.mark.parametrize(
    ("text", "share", "usable"),
    [("max 100000\n", None, None), ("50000 100000\n", 0.5, 1), ("10000000 100000\n", 100.0, None), ("?\n", None, None)],
)
def test_a_share_bounds_what_is_used(tmp_path: Path, text: str, share: float | None, usable: int | None) -> None:
    file = tmp_path / "sys/fs/cgroup/cpu.max"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert quota(tmp_path) == share
    assert usable_cores(tmp_path) == (min(own_cores(), 100) if usable is None else usable)


def test_without_control_groups_there_is_no_share(tmp_path: Path) -> None:
    assert quota(tmp_path) is None
    assert usable_cores(tmp_path) == own_cores() >= 1
