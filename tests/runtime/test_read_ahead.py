"""Weights are read from the disk before they are wanted: each byte once, in the order of the load, and not too many."""

from __future__ import annotations

import os
import sys

import pytest

from penstock.runtime.read_ahead import read_ahead

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only done on Linux")


@pytest.fixture
def read(monkeypatch):
    """(bytes of the file, offset, bytes read) of each piece."""
    pieces, plain = [], os.sendfile

    def sendfile(out, file, at, count):
        sent = plain(out, file, at, count)
        if sent:
            pieces.append((os.fstat(file).st_size, at, sent))
        return sent

    monkeypatch.setattr(os, "sendfile", sendfile)
    return pieces


@pytest.fixture
def weights(tmp_path):
    for name, size in {"b.safetensors": 2_000, "a.safetensors": 70 << 20, "tokenizer.json": 10}.items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    return tmp_path


def test_every_file_of_weights_is_read_to_its_end(weights, read):
    read_ahead(weights, 1 << 30).join()
    assert read[0][0] == 70 << 20
    for size in (70 << 20, 2_000):
        ends = [0, *(begin + sent for of, begin, sent in read if of == size)]
        assert [begin for of, begin, _ in read if of == size] == ends[:-1]
        assert ends[-1] == size


def test_no_more_is_read_than_there_is_room_for(weights, read):
    read_ahead(weights, 5_000).join()
    assert sum(sent for _, _, sent in read) == 5_000


def test_what_is_not_there_is_left_to_the_load(tmp_path, read):
    read_ahead(tmp_path / "nothing").join()
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    read_ahead(tmp_path).join()
    assert read == []
