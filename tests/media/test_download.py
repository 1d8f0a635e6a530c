"""Downloads from a real server that cuts, lies and refuses, and archives that mean harm."""

import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mmattn.errors import UserError
from mmattn.media import download as module
from mmattn.media.download import download, download_crema_d, download_ravdess

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
    """Serves files with ranges, a record of Zenodo, and objects of git-lfs."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}  # by name, of the record
        self.objects: dict[str, bytes] = {}  # by SHA-256, of git-lfs
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
        if server.busy:
            server.busy -= 1
            self.answer(503, b"<html>busy</html>")
        elif self.path == "/api/records/1188976":
            self.answer(200, server.record or server.zenodo())
        elif name in (files := server.files | server.objects):
            self.answer_file(name, server.lies.get(name, files[name]))
        else:
            self.answer(404, b"{}")

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        objects = [
            {**thing, "actions": {"download": {"href": f"{self.server.base}/lfs/{thing['oid']}"}}}
            for thing in asked["objects"]
        ]
        content = json.dumps({"objects": objects}).encode()
        self.answer(200, content, Content_Type="application/vnd.git-lfs+json")

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
    _server.lies, _server.objects = {}, {}
    _server.busy, _server.ranges, _server.record = 0, True, None
    by_archive = {VIDEO_1: {}, VIDEO_2: {}, SOUND: {}}
    for name, content in CLIPS.items():
        home = SOUND if name.endswith("wav") else VIDEO_1 if "Actor_01" in name else VIDEO_2
        by_archive[home][name] = content
    _server.files = {name: archive(members) for name, members in by_archive.items()}
    monkeypatch.setenv("MMATTN_ZENODO", _server.base)
    monkeypatch.setattr(module, "WAITS", (0, 0, 0))
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


def test_a_cut_transfer_goes_on_where_it_was(server, folder):
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


def test_the_next_call_goes_on_where_this_one_gave_up(server, folder):
    server.cuts = [480 * KB, 0, 0, 0]
    with pytest.raises(UserError, match=rf"{VIDEO_1}: expected an answer, got .*; what came is"):
        download_ravdess(folder, ("Actor_01",))
    assert found(folder) == {}
    assert kept(folder) == [f"{VIDEO_1}.partial"]
    before = len(server.requests)
    download_ravdess(folder, ("Actor_01",))
    assert server.requests[before:] == [("1188976", None), (VIDEO_1, f"bytes={480 * KB}-")]
    assert server.sent[VIDEO_1] == len(server.files[VIDEO_1])


def test_many_cuts_are_borne_while_more_comes(server, folder):
    server.cuts = 12 * [50_000]
    download_ravdess(folder, ("Actor_01",))
    assert server.sent[VIDEO_1] <= len(server.files[VIDEO_1]) + 12 * CHUNK
    assert len(found(folder)) == 2


def test_a_server_without_ranges_sends_everything_again(server, folder):
    server.ranges, server.cuts = False, [300_000]
    download_ravdess(folder, ("Actor_01",))
    assert server.sent[VIDEO_1] == 300_000 + len(server.files[VIDEO_1])
    assert len(found(folder)) == 2


def test_a_busy_server_is_asked_again(server, folder):
    server.busy = 2
    download_ravdess(folder, ("Actor_02",))
    assert found(folder) == of("Actor_02")
    server.busy = 4
    with pytest.raises(UserError, match=f"{server.base}: expected an answer, got "):
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


def test_a_partial_file_of_something_else_is_not_gone_on_with(server, folder):
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


def test_an_archive_that_is_gone_is_not_asked_for_again(server, folder):
    server.record = server.zenodo()
    server.files = {}
    with pytest.raises(UserError, match="404"):
        download_ravdess(folder, ("Actor_01",))
    assert [name for name, _ in server.requests] == ["1188976", VIDEO_1]


def test_no_network(folder, monkeypatch):
    monkeypatch.setenv("MMATTN_ZENODO", "http://127.0.0.1:9")
    monkeypatch.setattr(module, "WAITS", (0,))
    reason = r"127\.0\.0\.1:9: expected an answer, got .*refused.*the same command continues"
    with pytest.raises(UserError, match=reason):
        download_ravdess(folder)
    assert found(folder) == {}


def linked(name: str, target: str) -> dict:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return {info: target.encode()}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"../outside.mp4": b"x"}, "'../outside.mp4' leads out of the folder"),
        ({"Actor_01/../../outside.mp4": b"x"}, "leads out of the folder"),
        ({"/tmp/outside.mp4": b"x"}, "'/tmp/outside.mp4' leads out of the folder"),
        ({"C:\\outside.mp4": b"x"}, "leads out of the folder"),
        (linked("Actor_01/out", "/etc"), "'Actor_01/out' is neither a file nor a folder"),
        (linked("__MACOSX/out", "/etc"), "is neither a file nor a folder"),
    ],
)
def test_hostile_archives(server, folder, members, reason):
    server.files[VIDEO_1] = archive({"Actor_01/a.mp4": b"x", **members})
    before = sorted(folder.parent.parent.rglob("*"))
    with pytest.raises(UserError, match=f"{VIDEO_1}: .*{reason}"):
        download_ravdess(folder, ("Actor_01",))
    after = set(folder.parent.parent.rglob("*")) - set(before)
    work = folder / ".download"
    assert after == {folder.parent, folder, work, work / VIDEO_1}


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
    assert found(folder) == {}
    assert kept(folder) == [VIDEO_1]


def test_what_is_no_archive(server, folder):
    server.files[VIDEO_1] = b"<html>Sign in first</html>"
    with pytest.raises(UserError, match="expected a zip archive: File is not a zip file"):
        download_ravdess(folder, ("Actor_01",))


def test_hidden_files_of_an_archive_stay_in_it(server, folder):
    clips = {"Actor_01/a.mp4": b"clip"}
    hidden = {"__MACOSX/Actor_01/._a.mp4": b"x", "Actor_01/.DS_Store": b"x"}
    server.files[VIDEO_1] = archive(clips | hidden)
    download_ravdess(folder, ("Actor_01",))
    assert found(folder) == clips


def test_what_a_killed_call_had_half_unpacked_is_removed(server, folder):
    place = folder / ".download" / VIDEO_2.removesuffix(".zip")
    place.mkdir(parents=True)
    (place / "half.mp4").write_bytes(b"x")
    (folder / ".download" / VIDEO_2).write_bytes(server.files[VIDEO_2])
    download_ravdess(folder, ("Actor_02",))
    assert found(folder) == of("Actor_02")
    assert kept(folder) == [f"{VIDEO_2}.json"]
    assert server.sent[VIDEO_2] == 0  # the archive was whole


def test_a_small_disk_is_noticed_before(server, folder, monkeypatch):
    size = len(server.files[VIDEO_1])
    needed = 2.1 * size
    usage = SimpleNamespace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=f"expected 2 MB free on its disk for {VIDEO_1}, got 2 MB"):
        download_ravdess(folder, ("Actor_01",))
    assert server.sent == {}
    usage.free = needed + 1
    server.cuts = [400 * KB, 0, 0, 0]
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
    with pytest.raises(UserError, match="--to: expected a folder for the clips of crema-d"):
        download("crema-d", None, ())
    with pytest.raises(UserError, match="--only: expected without face-models"):
        download("face-models", None, ("Actor_01",))
    assert server.requests == []
    assert not folder.exists()
    text = commands.run("mmattn", "download", "ravdess", "--to", folder, "--only", "Bob", code=2)
    assert text == "error: --only: expected Actor_01 … Actor_24 or Audio, got Bob\n"


def test_without_the_extra(server, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(UserError, match=r"downloads need pooch: pip install 'mmattn\[media\]'"):
        download_ravdess(folder)


# CREMA-D: a git repository whose clips are kept by git-lfs.

FLV = {
    f"VideoFlash/{stem}.flv": noise(200_000 + seed, seed)
    for seed, stem in enumerate(("1001_DFA_ANG_XX", "1001_IEO_SAD_HI", "1076_MTI_NEU_XX"))
}
LFS = "https://git-lfs.github.com/spec/v1"


def git(*arguments: object) -> None:
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *author, *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def crema_d(server, tmp_path, monkeypatch) -> Server:
    """The server with CREMA-D's objects, its repository at MMATTN_CREMA_D."""
    if subprocess.run(["git", "lfs", "version"], capture_output=True).returncode:
        pytest.skip("git-lfs is not installed")
    (tmp_path / "home").mkdir()
    for name, value in {
        "HOME": str(tmp_path / "home"),  # where nobody has called `git lfs install`
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "lfs.url",
        "GIT_CONFIG_VALUE_0": f"{server.base}/lfs",
        "MMATTN_CREMA_D": f"file://{tmp_path}/origin.git",
    }.items():
        monkeypatch.setenv(name, value)
    source = tmp_path / "source"
    for name, content in (FLV | {"AudioWAV/1001_DFA_ANG_XX.wav": b"sound"}).items():
        sha = hashlib.sha256(content).hexdigest()
        server.objects[sha] = content
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(f"version {LFS}\noid sha256:{sha}\nsize {len(content)}\n")
    (source / "README.md").write_text("clips\n")
    (source / ".gitattributes").write_text("*.flv filter=lfs -text\n*.wav filter=lfs -text\n")
    (source / "ratings.csv").write_bytes(noise(100_000, 9))
    git("init", "--quiet", source)
    git("-C", source, "add", "--all")
    git("-C", source, "commit", "--quiet", "--message", "clips")
    git("clone", "--quiet", "--bare", source, tmp_path / "origin.git")
    git("-C", tmp_path / "origin.git", "config", "uploadpack.allowFilter", "true")
    return server


def flv(folder: Path) -> dict[str, bytes]:
    """Clips that are no pointers."""
    paths = (folder / "CREMA-D").rglob("*.flv")
    clips = {str(path.relative_to(folder / "CREMA-D")): path.read_bytes() for path in paths}
    return {name: content for name, content in clips.items() if LFS.encode() not in content}


def objects_sent(server: Server) -> int:
    return sum(count for name, count in server.sent.items() if name in server.objects)


def test_crema_d_by_actor(crema_d, folder, said):
    download("crema-d", folder, ("1001",))
    assert flv(folder) == {name: clip for name, clip in FLV.items() if "/1001_" in name}
    assert "Open Database License" in said[0]
    assert not any("1076" in message for message in said)
    download("crema-d", folder, ())
    assert flv(folder) == FLV
    assert "Known to be bad: 1076_MTI_NEU_XX is without audio." in said
    download("crema-d", folder, ())
    assert objects_sent(crema_d) == sum(map(len, FLV.values()))  # each once, no AudioWAV
    clone = folder / "CREMA-D"
    assert {path.name for path in clone.iterdir()} == {
        ".git",
        ".gitattributes",
        "README.md",
        "VideoFlash",
    }
    assert not (clone / ".git" / "lfs" / "objects").exists()  # the disk holds each clip once


def test_crema_d_after_cuts(crema_d, folder):
    crema_d.cuts = [50_000]
    download_crema_d(folder, ("1076",))
    assert flv(folder).keys() == {"VideoFlash/1076_MTI_NEU_XX.flv"}
    assert objects_sent(crema_d) == len(FLV["VideoFlash/1076_MTI_NEU_XX.flv"])


def test_crema_d_goes_on_after_a_failure(crema_d, folder):
    lost = "VideoFlash/1001_IEO_SAD_HI.flv"
    crema_d.lies = {hashlib.sha256(FLV[lost]).hexdigest(): noise(len(FLV[lost]), 7)}
    with pytest.raises(UserError, match=r"git lfs: .*the same command continues.*MMATTN_CREMA_D"):
        download_crema_d(folder, ("1001",))
    assert lost not in flv(folder)
    crema_d.lies = {}
    download_crema_d(folder, ("1001",))
    assert flv(folder)[lost] == FLV[lost]


def test_a_clip_of_crema_d_that_is_cut_short_or_gone(crema_d, folder):
    download_crema_d(folder)
    before = objects_sent(crema_d)
    short, gone, _ = FLV
    os.truncate(folder / "CREMA-D" / short, 1000)
    (folder / "CREMA-D" / gone).unlink()
    download_crema_d(folder)
    assert flv(folder) == FLV
    assert objects_sent(crema_d) - before == len(FLV[short]) + len(FLV[gone])


def test_a_small_disk_and_an_unknown_actor_of_crema_d(crema_d, folder, monkeypatch):
    with pytest.raises(UserError, match="--only: expected 1001 … 1076, got 1000"):
        download_crema_d(folder, ("1000", "1001"))
    usage = SimpleNamespace(free=4 * 200_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="expected 1 MB free on its disk for the clips, got 1 MB"):
        download_crema_d(folder)
    assert objects_sent(crema_d) == 0
    usage.free = 5 * 200_000 + 10
    download_crema_d(folder)


def test_crema_d_from_nowhere(crema_d, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MMATTN_CREMA_D", f"file://{tmp_path}/nowhere.git")
    with pytest.raises(UserError, match=r"git clone: .*nowhere.git"):
        download_crema_d(folder)
    assert not (folder / "CREMA-D").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="crema-d: expected git on this machine"):
        download_crema_d(folder)


def test_a_repository_of_the_user_is_left_alone(crema_d, folder):
    git("init", "--quiet", folder)  # which git would find from a folder in it
    config = (folder / ".git" / "config").read_text()
    (folder / "CREMA-D").mkdir()
    with pytest.raises(UserError, match=r"/CREMA-D: expected a folder that `mmattn download"):
        download_crema_d(folder)
    assert (folder / ".git" / "config").read_text() == config
