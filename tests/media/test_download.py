"""Downloads from a real server that cuts, lies and refuses, and archives that mean harm."""

import hashlib
import io
import json
import os
import shutil
import stat
import threading
import time
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mmattn.errors import UserError
from mmattn.media import download as module
from mmattn.media.download import RETRIES, download, download_ravdess

VIDEO_1, VIDEO_2 = "Video_Speech_Actor_01.zip", "Video_Speech_Actor_02.zip"
SOUND = "Audio_Speech_Actors_01-24.zip"
KB = 1 << 10
CHUNK = 16 * KB  # what a cut loses at most


def noise(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


CLIPS = {
    "Actor_01/01-01-01-01-01-01-01.mp4": noise(700_000, 0),
    "Actor_01/02-01-01-01-01-01-01.mp4": noise(300_000, 1),
    "Actor_02/01-01-01-01-01-01-02.mp4": noise(200_000, 2),
    "Actor_01/03-01-01-01-01-01-01.wav": noise(50_000, 3),
}


def archive(members: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return memory.getvalue()


class Server(ThreadingHTTPServer):
    """Serves files with ranges, and a record of Zenodo."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}  # by name, of the record
        self.lies: dict[str, bytes] = {}  # what is sent instead
        self.cuts: list[int] = []  # bytes after which the next answers are cut
        self.busy = 0  # answers that are 503
        self.ranges = True
        self.record: bytes | None = None  # instead of the true one
        self.requests: list[tuple[str, str | None]] = []  # what was asked for, Range
        self.sent: Counter = Counter()  # bytes by name

    def handle_error(self, request, client_address):
        """A client that has hung up is no failure of the server."""

    def zenodo(self) -> bytes:
        files = [
            {
                "key": name,
                "size": len(content),
                "checksum": f"md5:{hashlib.md5(content).hexdigest()}",
                "links": {"self": f"{self.base}/files/{name}"},
            }
            for name, content in self.files.items()
        ]
        return json.dumps({"id": 1188976, "files": files}).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server, name = self.server, self.path.rpartition("/")[2]
        server.requests.append((name, self.headers["Range"]))
        if self.path == "/api/records/1188976":
            self.answer(200, server.record or server.zenodo())
        elif server.busy:
            server.busy -= 1
            self.answer(503, b"<html>busy</html>")
        elif name in server.files:
            self.answer_file(name, server.lies.get(name, server.files[name]))
        else:
            self.answer(404, b"{}")

    def answer(self, code: int, content: bytes, total: int | None = None, **headers: str):
        self.send_response(code)
        self.send_header("Content-Length", str(len(content) if total is None else total))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def answer_file(self, name: str, content: bytes):
        server, start, code, headers = self.server, 0, 200, {}
        wanted = self.headers["Range"]
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(content):
                self.answer(416, b"")
                return
            code = 206
            headers = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        total = len(content) - start
        part = content[start:]
        if server.cuts:
            part = part[: server.cuts.pop(0)]
        server.sent[name] += len(part)
        self.answer(code, part, total, **headers)
        if len(part) < total:
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def _server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server(_server, monkeypatch) -> Server:
    """Has the clips of two actors and the audio of one; `mmattn download` asks it."""
    _server.requests, _server.cuts, _server.sent = [], [], Counter()
    _server.lies, _server.busy, _server.ranges, _server.record = {}, 0, True, None
    by_archive = {VIDEO_1: {}, VIDEO_2: {}, SOUND: {}}
    for name, content in CLIPS.items():
        home = SOUND if name.endswith("wav") else VIDEO_1 if "Actor_01" in name else VIDEO_2
        by_archive[home][name] = content
    _server.files = {name: archive(members) for name, members in by_archive.items()}
    monkeypatch.setenv("MMATTN_ZENODO", _server.base)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # pooch's, before it tries again
    return _server


@pytest.fixture
def said(monkeypatch) -> list[str]:
    messages = []
    monkeypatch.setattr(module, "say", messages.append)
    return messages


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "new" / "clips"


def found(folder: Path) -> dict[str, bytes]:
    """The clips in a folder by their paths in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(".")
    }


def kept(folder: Path) -> list[str]:
    """What lies in the folder's working folder."""
    return sorted(path.name for path in (folder / ".download").iterdir())


def of(*actors: str) -> dict[str, bytes]:
    return {name: clip for name, clip in CLIPS.items() if Path(name).parent.name in actors}


def test_clips_of_an_actor_come_whole_and_once(server, folder, said):
    download("ravdess", folder, ("Actor_02",))
    assert found(folder) == of("Actor_02")
    assert kept(folder) == [f"{VIDEO_2}.json"]
    assert server.requests == [("1188976", None), (VIDEO_2, "bytes=0-")]
    assert "CC BY-NC-SA 4.0" in said[0]
    download("ravdess", folder, ("Actor_02",))
    assert len(server.requests) == 2  # nothing is asked, let alone fetched
    download("ravdess", folder, ("Actor_01", "Actor_02", "Audio"))
    assert found(folder) == CLIPS
    assert server.sent == {name: len(content) for name, content in server.files.items()}


def test_a_clip_that_was_lost_is_fetched_again(server, folder):
    download_ravdess(folder, ("Actor_02",))
    os.truncate(folder / "Actor_02/01-01-01-01-01-01-02.mp4", 100)
    download_ravdess(folder, ("Actor_02",))
    assert found(folder) == of("Actor_02")


def test_a_cut_transfer_resumes_where_it_was(server, folder):
    server.cuts = [320 * KB, 0, 400 * KB + 100]
    download_ravdess(folder, ("Actor_01",))
    assert [wanted for _, wanted in server.requests[1:]] == [
        "bytes=0-",
        f"bytes={320 * KB}-",
        f"bytes={320 * KB}-",
        f"bytes={720 * KB}-",
    ]
    assert server.sent[VIDEO_1] == len(server.files[VIDEO_1]) + 100
    assert found(folder) == {n: c for n, c in of("Actor_01").items() if n.endswith("mp4")}


def test_the_next_call_resumes_where_this_one_gave_up(server, folder):
    server.cuts = [480 * KB, *RETRIES * [0]]
    with pytest.raises(
        UserError, match=rf"{VIDEO_1}: expected an answer, got .*; partial downloads"
    ):
        download_ravdess(folder, ("Actor_01",))
    assert found(folder) == {}
    assert kept(folder) == [f"{VIDEO_1}.partial"]
    before = len(server.requests)
    download_ravdess(folder, ("Actor_01",))
    assert server.requests[before:] == [("1188976", None), (VIDEO_1, f"bytes={480 * KB}-")]
    assert server.sent[VIDEO_1] == len(server.files[VIDEO_1])


def test_a_server_without_ranges_sends_everything_again(server, folder):
    server.ranges, server.cuts = False, [300_000]
    download_ravdess(folder, ("Actor_01",))
    assert server.sent[VIDEO_1] == 300_000 + len(server.files[VIDEO_1])
    assert len(found(folder)) == 2


def test_a_busy_server_is_asked_again(server, folder):
    server.busy = 2
    download_ravdess(folder, ("Actor_02",))
    assert found(folder) == of("Actor_02")
    server.busy = RETRIES + 1
    with pytest.raises(UserError, match=f"{VIDEO_1}: expected an answer, got 503"):
        download_ravdess(folder, ("Actor_01",))


def other_bytes(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def twice(content: bytes) -> bytes:
    return content + content


@pytest.mark.parametrize("lie", [other_bytes, twice])
def test_wrong_content_leaves_nothing(server, folder, lie):
    server.lies = {VIDEO_1: lie(server.files[VIDEO_1])}
    md5 = hashlib.md5(server.files[VIDEO_1]).hexdigest()
    with pytest.raises(UserError, match=rf"{VIDEO_1}: expected a file with md5:{md5}, got another"):
        download_ravdess(folder, ("Actor_01",))
    assert found(folder) == {}
    assert kept(folder) == []
    server.lies = {}
    download_ravdess(folder, ("Actor_01",))
    assert len(found(folder)) == 2


def test_a_partial_file_of_something_else_is_not_resumed(server, folder):
    (folder / ".download").mkdir(parents=True)
    partial = folder / ".download" / f"{VIDEO_2}.partial"
    partial.write_bytes(bytes(len(server.files[VIDEO_2]) + 1000))
    download_ravdess(folder, ("Actor_02",))
    assert found(folder) == of("Actor_02")


def test_a_file_that_the_server_lacks(server, folder):
    del server.files[VIDEO_2]
    with pytest.raises(UserError, match=f"expected Zenodo's record of RAVDESS with {VIDEO_2}"):
        download_ravdess(folder, ("Actor_02",))
    server.record = json.dumps({"status": 404, "message": "No such record"}).encode()
    with pytest.raises(UserError, match=r"expected Zenodo's record.*No such record"):
        download_ravdess(folder, ("Actor_01",))


@pytest.mark.parametrize("name", ["../out.mp4", "Actor_01/../../out.mp4", "/tmp/out.mp4"])
def test_archives_write_nothing_outside_of_the_folder(server, folder, name):
    server.files[VIDEO_1] = archive({"Actor_01/a.mp4": b"a", name: b"x"})
    download_ravdess(folder, ("Actor_01",))
    assert sorted(found(folder).values()) == [b"a", b"x"]
    assert list(folder.parents[1].rglob("out.mp4")) == list(folder.rglob("out.mp4"))
    assert not Path("/tmp/out.mp4").exists()


def test_a_link_in_an_archive_becomes_a_file(server, folder):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    server.files[VIDEO_1] = archive({link: b"..", "link/out.mp4": b"x"})
    with pytest.raises(UserError, match=f"{VIDEO_1}: cannot be unpacked: .*link"):
        download_ravdess(folder, ("Actor_01",))
    assert found(folder) == {"link": b".."}
    assert not list(folder.parents[1].rglob("out.mp4"))


def test_an_archive_that_swells(server, folder):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("Actor_01/a.mp4", bytes(30_000_000))
    server.files[VIDEO_1] = memory.getvalue()
    with pytest.raises(UserError, match=r"expected at most 20 times its size.*30,000,000 bytes"):
        download_ravdess(folder, ("Actor_01",))
    assert found(folder) == {}


def test_an_archive_that_lies_about_its_sizes(server, folder):
    content = bytearray(archive({"Actor_01/a.mp4": noise(10_000, 4)}))
    at = content.rindex(b"PK\x01\x02") + 24  # bytes unpacked, in the directory at the end
    content[at : at + 4] = (9_000).to_bytes(4, "little")
    server.files[VIDEO_1] = bytes(content)
    with pytest.raises(UserError, match="expected a zip archive: Bad CRC"):
        download_ravdess(folder, ("Actor_01",))
    assert kept(folder) == [VIDEO_1]  # and no list of its clips: it is not taken for unpacked


def test_what_is_no_archive(server, folder):
    server.files[VIDEO_1] = b"<html>Sign in first</html>"
    with pytest.raises(UserError, match="expected a zip archive: File is not a zip file"):
        download_ravdess(folder, ("Actor_01",))


def test_a_small_disk_is_noticed_before(server, folder, monkeypatch):
    size = len(server.files[VIDEO_1])
    needed = 2.1 * size
    usage = SimpleNamespace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=f"expected 2 MB free on its disk for {VIDEO_1}, got 2 MB"):
        download_ravdess(folder, ("Actor_01",))
    assert server.sent == {}
    usage.free = needed + 1
    server.cuts = [400 * KB, *RETRIES * [0]]
    with pytest.raises(UserError, match="expected an answer"):
        download_ravdess(folder, ("Actor_01",))
    usage.free = needed + 1 - 400 * KB  # what came is not needed again
    download_ravdess(folder, ("Actor_01",))


def test_an_unpacked_archive_that_does_not_fit(server, folder, monkeypatch):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("Actor_01/a.mp4", noise(1_000_000, 5) + bytes(9_000_000))
    server.files[VIDEO_1] = memory.getvalue()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000))
    with pytest.raises(UserError, match=f"expected 10 MB free on its disk for {VIDEO_1}, got 5"):
        download_ravdess(folder, ("Actor_01",))
    assert found(folder) == {}
    assert kept(folder) == [VIDEO_1]


def test_options_that_are_wrong(server, folder, commands):
    with pytest.raises(UserError, match="--only: expected Actor_01 … Actor_24 or Audio, got 1001"):
        download("ravdess", folder, ("Actor_01", "1001"))
    with pytest.raises(UserError, match="--to: expected a folder for the clips of ravdess"):
        download("ravdess", None)
    with pytest.raises(UserError, match="--only: not for models"):
        download("models", None, ("Actor_01",))
    assert server.requests == []
    assert not folder.exists()
    text = commands.run("mmattn", "download", "ravdess", "--to", folder, "--only", "Bob", code=2)
    assert text == "error: --only: expected Actor_01 … Actor_24 or Audio, got Bob\n"
