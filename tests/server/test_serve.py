"""`mmattn serve`: a real server, whose answers are those of `mmattn predict`."""

import json
import os
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
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
from mmattn.server.pool import Limits
from tests.server.served import SMALL, Server, clip_of

pytestmark = pytest.mark.slow

FORM = (
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n%s\r\n--x--\r\n"
)


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


def test_the_openapi_document_is_true(server, clip):
    _, api, _ = server.ask("GET", "/openapi.json")
    openapi_spec_validator.validate(api)

    def check(path: str, method: str, given: tuple) -> None:
        content = api["paths"][path][method]["responses"][str(given[0])]["content"]
        schema = content["application/json"]["schema"]
        jsonschema.validate(given[1], schema, jsonschema.Draft202012Validator)

    check("/predict", "post", server.predict(clip))
    check("/predict", "post", server.predict(clip[:-300]))
    check("/predict", "post", server.ask("POST", "/predict", **{"Content-Length": "2000000000"}))
    check("/health", "get", server.ask("GET", "/health"))


def test_a_warning_where_others_can_reach_it(commands, clip, tmp_path):
    with Server(commands, tmp_path, "--host", "0.0.0.0", "--workers", 1) as one:
        assert "warning: --host 0.0.0.0: anyone who can reach this address" in "".join(one.said)
        one.address = one.address.replace("0.0.0.0", "127.0.0.1")
        assert one.predict(clip, Host="mmattn.example")[0] == 200
        assert (one.end(signal.SIGINT)[-1], one.process.returncode) == ("stopped", 0)


def test_what_cannot_be_served_is_said_at_once(commands):
    for options, expected in (
        (("nowhere",), "nowhere: expected a run's folder"),
        (("starter", "--port", 70000), "--port 70000: expected 0 to 65535"),
        (("starter", "--workers", 0), "--workers 0: expected 1 or more"),
        (("starter", "--checkpoint", "final"), "final"),
    ):
        assert expected in commands.run("mmattn", "serve", *options, code=2)


@pytest.mark.parametrize("option", Limits._fields)
def test_limits_that_cannot_be(option):
    with pytest.raises(UserError, match=": expected "):
        Limits(2, 16, 100, 60, 4)._replace(**{option: -1}).check()


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
    with Server(commands, tmp_path, "--workers", 1) as one:
        status, answer, _ = one.predict(clip.read_bytes(), "clip.wav")
        assert status == 200, answer
        assert answer["predictions"][0]["predicted"] == run.predict(clip).predicted


def test_two_gigabytes_are_neither_kept_in_memory_nor_on_the_disk(commands, clip, tmp_path):
    with Server(commands, tmp_path, "--workers", 1, "--max-size", 50) as one:
        memory = Path(f"/proc/{one.process.pid}/status")

        def peak() -> int:
            (line,) = (line for line in memory.read_text().splitlines() if line.startswith("VmHWM"))
            return int(line.split()[1])

        before = peak()
        chunks = (bytes(1_000_000) for _ in range(2000))
        with suppress(BrokenPipeError, ConnectionResetError):  # it was told, and sent on for long
            assert one.ask("POST", "/predict", chunks)[0] == 413
        assert peak() - before < 20_000 and one.left() == []
        assert one.predict(clip)[0] == 200


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
    browser.wait(lambda: browser.text("#said") == expected.predicted)
    shown = "".join(
        f"{name}{probability:.3f}"
        for name, probability in zip(run.class_names, expected.probabilities, strict=True)
    )
    assert browser.text("#classes") == shown
    assert json.loads(browser.text("#json"))["predictions"][0]["clip"] == path.name
    path.write_bytes(clip[:-300])
    browser.press("#file", str(path))
    browser.click("form button")
    browser.wait(lambda: browser.text("#said").startswith("422: no .npz archive: its "))
    asked = {urlsplit(url) for url in browser.requests()}  # of the browser itself too: chrome://
    assert {url.netloc for url in asked if url.scheme != "chrome"} == {server.address}
    assert all("422" in row["message"] for row in browser.complaints())
