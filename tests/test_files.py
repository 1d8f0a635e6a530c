"""Files are whole or as they were."""

import os

import pytest

from mmattn.files import read_json, write_bytes, write_json, write_text


def test_bytes_and_text_are_written_as_they_are(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"\r\n\x00\xff")
    assert path.read_bytes() == b"\r\n\x00\xff"
    write_text(path, "a\nτ\r\n")
    assert path.read_bytes() == "a\nτ\r\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmattn.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No such file") as caught:
        write_bytes(tmp_path / "none" / "file", b"")
    assert caught.value.filename == str(tmp_path / "none" / "file")


def test_bytes_of_a_name_that_are_not_utf8_are_written_escaped(tmp_path):
    name = os.fsdecode(b"J\xfcrgen")
    write_text(tmp_path / "text", f"τ {name}")
    assert (tmp_path / "text").read_bytes() == "τ J\\udcfcrgen".encode()
    write_json(tmp_path / "json", {"clip": name})
    assert read_json(tmp_path / "json") == {"clip": name}
