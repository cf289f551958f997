"""Weights are read from the disk before they are wanted: each byte once, in the order of the load, and not too many."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest

from penstock.runtime import build
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
    files = {tmp_path / "b.safetensors": 70 << 20, tmp_path / "a.safetensors": 2_000}
    for file, size in files.items():
        with file.open("wb") as stream:
            stream.truncate(size)
    return list(files)


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


def test_what_is_not_there_is_left_to_the_load(tmp_path, weights, read):
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    missing = [tmp_path / "gone.safetensors", tmp_path / "nothing"]
    read_ahead(missing).join()
    assert read == []
    read_ahead([*missing, *weights[1:]]).join()
    assert read == [(2_000, 0, 2_000)]


def test_only_what_the_load_reads_is_read(tmp_path, checkpoint, deployment, monkeypatch):
    """Some checkpoints have all weights a second time, under the names of another library."""
    shard = "model-00001-of-00001.safetensors"
    shutil.copy(checkpoint / "config.json", tmp_path)
    for name in (shard, "consolidated.safetensors"):
        shutil.copy(checkpoint / "model.safetensors", tmp_path / name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": shard}}))

    class Asked(Exception):
        pass

    def ask(files):
        raise Asked(*files)

    monkeypatch.setattr(build, "read_ahead", ask)
    with pytest.raises(Asked) as asked:
        build.build(deployment({"model.path": str(tmp_path)}), lambda *phase: None)
    assert asked.value.args == (tmp_path / shard,)
