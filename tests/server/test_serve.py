"""`mmattn serve`: a real server, clients that behave and others, processes that die."""

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import numpy as np
import openapi_spec_validator
import pytest

from mmattn.errors import UserError
from mmattn.media.download import fetch_models
from mmattn.run.run import Run, load_run
from mmattn.server.serve import UPLOADS, Limits, uploads_folder

SMALL = 2_000_000  # bytes that a request may have here
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n%s\r\n--x--\r\n"
)


class Server:
    """The command in a process of its own, whose temporary files are in a folder of its own."""

    def __init__(self, commands, folder: Path, *options: object):
        self.folder = folder
        words = ["-m", "mmattn", "serve", "starter", "--port", 0, *options]
        self.process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            env={**commands.environment, "TMPDIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = []
        for line in self.process.stdout:
            self.said.append(line)
            if "POST clips to" in line:
                self.address = urlsplit(line.split(": POST")[0]).netloc
                return
        raise AssertionError("".join(self.said))

    def ask(self, method: str, path: str, body=None, **headers: str) -> tuple[int, dict, dict]:
        """Status, JSON and headers of an answer."""
        connection = http.client.HTTPConnection(self.address, timeout=300)
        try:
            connection.request(method, path, body, headers, encode_chunked=False)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read()), dict(answer.headers)
        finally:
            connection.close()

    def predict(self, content: bytes, name: str = "clip.npz", **headers: str) -> tuple:
        return self.ask("POST", f"/predict?name={name}", content, **headers)

    def begin(self, content: bytes, length: int | None = None) -> socket.socket:
        """A connection on which so much of a clip was sent, and nothing is read yet."""
        host, _, port = self.address.partition(":")
        connection = socket.create_connection((host, int(port)), timeout=300)
        head = f"POST /predict HTTP/1.1\r\nHost: {self.address}\r\n"
        head += f"Content-Length: {length or len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        return connection

    def health(self) -> dict:
        return self.ask("GET", "/health")[1]

    def workers(self) -> list[int]:
        """The processes that predict."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [
            int(child)
            for child in children.split()
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]

    def signal_workers(self, number: int) -> None:
        for worker in self.workers():
            os.kill(worker, number)

    def left(self) -> list[Path]:
        """Uploads that are on the disk."""
        return [
            Path(folder, name)
            for folder, _, names in os.walk(self.folder)  # which passes what is gone meanwhile
            for name in names
            if name != "lock"
        ]

    def end(self, number: int = signal.SIGTERM) -> str:
        self.process.send_signal(number)
        return self.process.communicate(timeout=60)[0]


@pytest.fixture(scope="module")
def server(commands, tmp_path_factory, clip) -> Iterator[Server]:
    """Two processes, four places more, small limits."""
    limits = ("--max-size", SMALL / 1e6, "--queue", 4, "--memory", 0.3)
    one = Server(commands, tmp_path_factory.mktemp("serve"), *limits)
    with ThreadPoolExecutor() as clients:  # the first clip of a process takes longer
        assert list(clients.map(one.predict, [clip] * 2))
    yield one
    one.process.kill()
    one.process.communicate()


@pytest.fixture(autouse=True)
def nothing_is_left(request) -> Iterator[None]:
    """After each test all processes wait for clips, no place is taken and no file is there."""
    yield
    if "server" in request.fixturenames:
        one = request.getfixturevalue("server")
        wait_until(lambda: {**one.health(), "run": ""} == {**IDLE, "run": ""})
        assert one.left() == []


IDLE = {"status": "ok", "workers": 2, "busy": 0, "places": 6, "taken": 0}


@pytest.fixture(scope="module")
def run() -> Run:
    return load_run("starter")


@pytest.fixture(scope="module")
def clip(run) -> bytes:
    return clip_of(run, 0)


def clip_of(run: Run, number: int) -> bytes:
    """A feature file, of four lengths, each number with content of its own."""
    frames = np.random.default_rng(number).normal(
        size=(60 + 20 * (number % 4), run.widths["audio"])
    )
    arrays = {
        "audio_features": frames.astype(np.float32),
        "audio_timestamps": 0.02 * np.arange(len(frames)),
        "extractor": json.dumps(run.extractor),
    }
    np.savez(content := io.BytesIO(), **arrays)
    return content.getvalue()


def wait_until(true: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_answer_is_what_the_command_says(server, clip, commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("clip.npz").write_bytes(clip)
    command = [sys.executable, "-m", "mmattn", "predict", "starter", "clip.npz", "--json"]
    said = json.loads(subprocess.check_output(command, env=commands.environment))
    assert said["predictions"]
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for given in (
        server.predict(clip),
        server.ask("POST", "/predict", clip),  # without a name, the content tells what it is
        server.ask("POST", "/predict", iter([clip[:1000], clip[1000:]])),  # in chunks
        server.ask("POST", "/predict", FORM % (b"clip.npz", clip), **form),
    ):
        assert given[:2] == (200, said)


def test_the_name_is_the_client_s_own(server, clip):
    for name in ("../../etc/x.npz", "J%C3%BCrgen.npz", "a%00b.npz", "x" * 5000 + ".npz"):
        status, answer, _ = server.predict(clip, name)
        expected = name.replace("%C3%BC", "ü").replace("%00", "\0")
        assert (status, answer["predictions"][0]["clip"]) == (200, expected)


def test_a_corrupt_clip_gets_the_reason_of_the_command(server, clip, run, tmp_path):
    for name, content in (
        ("clip.npz", clip[:-300]),
        ("clip.npz", b""),
        ("clip.wav", b"RIFF and no more"),
        ("clip", os.urandom(5000)),
    ):
        (path := tmp_path / name).write_bytes(content)
        (failure,) = run.predict_all([path]).failures
        status, answer, _ = server.predict(content, name)
        assert (status, answer) == (422, {"detail": failure.reason})


def test_requests_that_are_wrong(server, clip):
    def post(content: bytes, kind: str = "multipart/form-data; boundary=x") -> tuple:
        return server.ask("POST", "/predict", content, **{"Content-Type": kind})

    form = FORM % (b"clip.npz", clip)
    for given, status in (
        (server.ask("GET", "/nothing"), 404),
        (server.ask("POST", "/nothing", clip), 404),
        (server.ask("GET", "/predict"), 405),
        (server.predict(clip, Host="evil.example"), 403),
        (server.predict(clip, Origin="http://evil.example"), 403),
        (post(form, "multipart/form-data"), 400),
        (post(clip), 400),
        (post(form.replace(b"; filename=", b"; other=")), 400),
        (post(form.removesuffix(b"--x--\r\n") + form), 400),
    ):
        assert given[0] == status and given[1].keys() == {"detail"}


def test_what_is_too_large_is_refused_at_the_limit(server):
    status, answer, _ = server.ask("POST", "/predict", **{"Content-Length": "2000000000"})
    assert (status, answer) == (413, {"detail": "expected at most 2 MB (--max-size)"})
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 10 * SMALL:
            assert (
                server.left() == [] or sum(path.stat().st_size for path in server.left()) <= SMALL
            )
            sent += 100_000
            yield bytes(100_000)

    assert server.ask("POST", "/predict", endless())[0] == 413
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert server.ask("POST", "/predict", FORM % (b"a", bytes(SMALL)), **form)[0] == 413
    assert server.predict(bytes(SMALL), "a.wav")[0] == 422  # just small enough


def test_fifty_clients_at_once(server, run, tmp_path):
    contents = [clip_of(run, number) for number in range(50)]
    paths = [tmp_path / f"{number}.npz" for number in range(50)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    refused = []

    def insist(number: int) -> dict:
        while True:
            status, answer, headers = server.predict(contents[number], f"{number}.npz")
            if status == 200:
                return answer["predictions"][0]
            assert status == 503 and int(headers["retry-after"]) >= 1
            refused.append(number)
            time.sleep(0.2)

    with ThreadPoolExecutor(50) as clients:
        answers = list(clients.map(insist, range(50)))
    assert refused
    for number, (expected, found) in enumerate(
        zip(run.predict_all(paths).predictions, answers, strict=True)
    ):
        assert (found["clip"], found["predicted"]) == (f"{number}.npz", expected.predicted)
        np.testing.assert_allclose(
            list(found["probabilities"].values()), expected.probabilities, atol=1e-5
        )


@pytest.mark.slow
def test_clients_that_go_away_free_their_places(server, clip):
    server.signal_workers(signal.SIGSTOP)
    clients = [server.begin(clip) for _ in range(6)]
    wait_until(lambda: server.health()["taken"] == 6)
    status, _, headers = server.predict(clip)
    assert status == 503 and int(headers["retry-after"]) >= 1
    begin = time.monotonic()
    for one in clients:
        one.close()
    wait_until(lambda: server.health()["taken"] == 0)
    assert time.monotonic() - begin < 30  # not the time limit has ended them
    assert server.predict(clip)[0] == 200  # by the successor of a process


def test_a_client_that_goes_away_while_it_sends(server):
    with server.begin(b"x", 1000):
        wait_until(lambda: server.health()["taken"] == 1)
    wait_until(lambda: server.health()["taken"] == 0, 30)


@pytest.mark.slow
def test_what_takes_too_long_is_ended(commands, clip, tmp_path):
    one = Server(commands, tmp_path, "--workers", 1, "--timeout", 3)
    try:
        with one.begin(b"x", 1000) as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
        assert one.health()["taken"] == 0
        (worker,) = one.workers()
        os.kill(worker, signal.SIGSTOP)
        begin = time.monotonic()
        status, answer, _ = one.predict(clip)
        assert time.monotonic() - begin >= 3
        assert (status, answer) == (504, {"detail": "it took over 3 s"})
        wait_until(lambda: one.predict(clip)[0] == 200)
        assert worker not in one.workers()
    finally:
        one.end()


@pytest.mark.slow
def test_a_process_that_is_killed_is_replaced(server, clip):
    server.signal_workers(signal.SIGSTOP)
    with ThreadPoolExecutor() as clients:
        asked = [clients.submit(server.predict, clip) for _ in range(3)]
        wait_until(lambda: server.health()["busy"] == 2 and server.health()["taken"] == 3)
        server.signal_workers(signal.SIGKILL)
        answers = sorted(one.result()[:2] for one in asked[:3])
    died = {"detail": "the process that read the clip died, and is replaced"}
    assert answers[1:] == [(500, died), (500, died)] and answers[0][0] == 200
    wait_until(lambda: server.health()["workers"] == 2)
    server.signal_workers(signal.SIGKILL)
    time.sleep(0.5)  # they die while they have nothing to do
    assert server.predict(clip)[0] == 200


def test_the_openapi_document_is_true(server, clip):
    _, api, _ = server.ask("GET", "/openapi.json")
    openapi_spec_validator.validate(api)

    def check(path: str, method: str, given: tuple) -> None:
        content = api["paths"][path][method]["responses"][str(given[0])]["content"]
        schema = {**content["application/json"]["schema"], "components": api["components"]}
        jsonschema.validate(given[1], schema, jsonschema.Draft202012Validator)

    check("/predict", "post", server.predict(clip))
    check("/predict", "post", server.predict(clip[:-300]))
    check("/predict", "post", server.ask("POST", "/predict", **{"Content-Length": "2000000000"}))
    check("/health", "get", server.ask("GET", "/health"))


@pytest.mark.slow
def test_a_warning_where_others_can_reach_it(commands, clip, tmp_path):
    one = Server(commands, tmp_path, "--host", "0.0.0.0", "--workers", 1)
    try:
        assert "".join(one.said).count("warning: --host 0.0.0.0: whoever reaches this address") == 1
        one.address = one.address.replace("0.0.0.0", "127.0.0.1")
        assert one.predict(clip, Host="mmattn.example")[0] == 200
    finally:
        said = one.end(signal.SIGINT)
    assert (said.splitlines()[-1], one.process.returncode) == ("stopped", 0)


@pytest.mark.slow
def test_asked_to_end_it_finishes_what_it_began(commands, clip, tmp_path):
    one = Server(commands, tmp_path, "--workers", 1)
    (worker,) = one.workers()
    os.kill(worker, signal.SIGSTOP)
    with ThreadPoolExecutor() as clients:
        asked = clients.submit(one.predict, clip)
        wait_until(lambda: one.health()["busy"] == 1)
        os.kill(worker, signal.SIGTERM)  # as where a whole group gets the signal
        one.process.terminate()
        time.sleep(0.5)
        assert not asked.done()
        with pytest.raises(ConnectionRefusedError):
            one.health()
        os.kill(worker, signal.SIGCONT)
        assert asked.result()[0] == 200
    one.process.communicate(timeout=300)
    assert one.process.returncode == 0
    assert [*tmp_path.iterdir()] == [] and not Path(f"/proc/{worker}").exists()


@pytest.mark.slow
def test_nothing_is_left_of_a_server_that_is_killed(commands, clip, tmp_path):
    one = Server(commands, tmp_path, "--workers", 1)
    (worker,) = one.workers()
    os.kill(worker, signal.SIGSTOP)
    with one.begin(clip):
        wait_until(lambda: one.health()["busy"] == 1)
        assert [path.name for path in one.left()] == ["clip.npz"]
        one.process.kill()
        one.process.wait()
    os.kill(worker, signal.SIGCONT)
    one.process.communicate()  # until the last process has closed it
    assert [*tmp_path.iterdir()] == []


def test_the_next_server_removes_what_all_processes_left(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, other = tmp_path / f"{UPLOADS}left", tmp_path / f"{UPLOADS}no-server"
    for folder in (left, other):
        folder.mkdir()
    (left / "lock").touch()
    with uploads_folder() as first, uploads_folder() as second:
        assert {*tmp_path.iterdir()} == {other, first, second}
    assert {*tmp_path.iterdir()} == {other}


def test_what_cannot_be_served_is_said_at_once(commands):
    for options, expected in (
        (("nowhere",), "nowhere: expected a run's folder"),
        (("starter", "--port", 70000), "--port 70000: expected 0 to 65535"),
        (("starter", "--workers", 0), "--workers 0: expected 1 or more"),
        (("starter", "--checkpoint", "final"), "final"),
    ):
        assert expected in commands.run("mmattn", "serve", *options, code=2)


@pytest.mark.parametrize("option", ["workers", "queue", "size", "seconds", "memory"])
def test_limits_that_cannot_be(option):
    with pytest.raises(UserError, match=": expected "):
        Limits(**{"workers": 1, "queue": 0, "size": 1, "seconds": 1, "memory": 1, option: -1})


@pytest.mark.slow
def test_a_file_that_unpacks_to_too_much(server, clip, run):
    frames = np.zeros((400_000, run.widths["audio"]), np.float32)  # 0.6 GB
    np.savez_compressed(content := io.BytesIO(), audio_features=frames)
    status, answer, _ = server.predict(content.getvalue())
    assert status == 422 and "MemoryError" in answer["detail"]
    assert server.predict(clip)[0] == 200


@pytest.mark.slow
def test_a_raw_clip(commands, run, tmp_path):
    pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed: extra [media]")
    try:
        fetch_models("audio-models")
    except UserError as error:
        pytest.skip(f"the audio models cannot be fetched: {error}")
    noise = np.random.default_rng(0).normal(0, 3000, 32_000).astype("<i2")
    with wave.open(str(clip := tmp_path / "clip.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(noise.tobytes())
    one = Server(commands, tmp_path, "--workers", 1)
    try:
        status, answer, _ = one.predict(clip.read_bytes(), "clip.wav")
        assert status == 200, answer
        assert answer["predictions"][0]["predicted"] == run.predict(clip).predicted
    finally:
        one.end()


@pytest.mark.slow
def test_two_gigabytes_are_neither_kept_in_memory_nor_on_the_disk(commands, clip, tmp_path):
    one = Server(commands, tmp_path, "--workers", 1, "--max-size", 50)
    memory = Path(f"/proc/{one.process.pid}/status")

    def peak() -> int:
        (line,) = (line for line in memory.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1])

    try:
        before = peak()
        chunks = (bytes(1_000_000) for _ in range(2000))
        with suppress(BrokenPipeError, ConnectionResetError):  # it was told, and sent on for long
            assert one.ask("POST", "/predict", chunks)[0] == 413
        assert peak() - before < 20_000 and one.left() == []
        assert one.predict(clip)[0] == 200
    finally:
        one.end()


def test_the_page_predicts_and_asks_nothing_of_others(server, browser, clip, run, tmp_path):
    (path := tmp_path / "a <b>clip.npz").write_bytes(clip)
    for log in ("browser", "performance"):
        browser.driver.get_log(log)
    browser.driver.get(f"http://{server.address}/docs")
    browser.wait(lambda: "POST /predict" in browser.text("#requests"))
    assert "starter" in browser.text("h1") and "503" in browser.text("#requests")
    browser.press("#file", str(path))
    browser.click("form button")
    expected = run.predict(path)
    browser.wait(lambda: browser.text("#said").startswith(f"{expected.predicted}, after "))
    shown = "".join(
        f"{name}{probability:.3f}"
        for name, probability in zip(run.class_names, expected.probabilities, strict=True)
    )
    assert browser.text("#classes") == shown
    assert json.loads(browser.text("#json"))["predictions"][0]["clip"] == path.name
    path.write_bytes(clip[:-300])
    browser.press("#file", str(path))
    browser.click("form button")
    browser.wait(lambda: browser.text("#said").startswith("422: no .npz archive of "))
    asked = {urlsplit(url) for url in browser.requests()}  # of the browser itself too: chrome://
    assert {url.netloc for url in asked if url.scheme != "chrome"} == {server.address}
    assert all("422" in row["message"] for row in browser.complaints())
