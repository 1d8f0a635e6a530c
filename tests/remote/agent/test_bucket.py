"""Results go to a bucket and come back, whatever is cut, killed or changed meanwhile."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from mmattn.remote.agent import bucket as agent
from mmattn.remote.agent import outbox
from mmattn.remote.agent.bucket import Bucket, Damaged
from mmattn.remote.send import AGENT
from tests.remote.buckets import NAME, PREFIX, URI, files_in, here, sha256
from tests.remote.machines.cloud_api import Fault, lost_answers
from tests.remote.waiting import wait_until

RUNNING, ENDED = {"state": "running", "start": 1}, {"state": "ended", "start": 1, "exit_code": 0}
MANIFEST = PREFIX + "manifest.json"


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    """A run's folder on the machine; `tell` says how its job is."""
    base = tmp_path / "machine"
    for name, content in {
        "run/config.json": b"{}",
        "run/metrics.jsonl": b"{}\n",
        "run/train.log": b"begin\n",
        "run/checkpoints/best/8/d/a": b"8",
        "run/checkpoints/latest/8/d/a": b"8",
        "run/checkpoints/latest/8/d/empty": b"",
        "job/status.json": b"{}",
        "job/job.log": b"begin\n",
    }.items():
        write(base / name, content)
    tell(base, RUNNING)
    for module in (agent, outbox):
        monkeypatch.setattr(module, "describe_job", lambda folder: told(folder.parent))
    return base


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def tell(base: Path, job: dict) -> None:
    (base / "told.partial").write_text(json.dumps(job))
    os.replace(base / "told.partial", base / "told")


def told(base: Path) -> dict:
    return json.loads((base / "told").read_text())


@pytest.fixture
def bucket(store) -> Bucket:
    return here()


def rotate(base: Path, step: int) -> None:
    """A newer checkpoint instead of the one that is there."""
    write(base / f"run/checkpoints/new/{step}/d/a", str(step).encode())
    (base / "run/checkpoints/new").rename(base / "run/checkpoints/newer")
    shutil.rmtree(base / "run/checkpoints/latest")
    (base / "run/checkpoints/newer").rename(base / "run/checkpoints/latest")


def made(base: Path) -> dict[str, bytes]:
    """What is to be in the bucket, or to come back."""
    found = files_in(base, "run", "job")
    return {path.removeprefix("run/"): found[path] for path in found if "/." not in path}


def test_everything_comes_back_byte_for_byte(base, bucket, store, tmp_path):
    write(base / "run/plots/größe %2F+?#.png", os.urandom(3_000_000))
    write(base / "job/lock", b"")
    assert agent.push(base / "job", bucket) == RUNNING
    sent = made(base)
    del sent["job/lock"]
    assert store.results() == sent
    manifest = bucket.manifest()
    assert manifest["job"] == RUNNING and not manifest["complete"] and manifest["time"] > 1e9
    other = tmp_path / "other"
    write(other / "job/spec.json", b"its own")
    done = agent.pull(other / "job", bucket)
    del sent["job/status.json"]  # of a process that is not there
    assert made(other) == {**sent, "job/spec.json": b"its own"}
    assert done == {"files": len(sent)}


def test_only_what_changed_is_sent_and_what_is_old_goes(base, bucket, store, cloud_api):
    agent.push(base / "job", bucket)
    before = len(cloud_api.calls)
    write(base / "run/metrics.jsonl", b"{}\n{}\n")
    rotate(base, 9)
    agent.push(base / "job", bucket)
    assert store.results() == made(base)
    assert not store.leftovers()
    sent = [
        call.parameters["Key"] for call in cloud_api.calls[before:] if call.action == "PutObject"
    ]
    assert sorted(sent) == sorted(
        [
            f"{PREFIX}checkpoints/latest/9/d/a@{sha256(b'9')}",
            f"{PREFIX}metrics.jsonl@{sha256(b'{}' + bytes([10]) + b'{}' + bytes([10]))}",
            MANIFEST,
        ]
    )


def test_training_continues_during_an_upload(base, bucket, store, monkeypatch):
    """A checkpoint is replaced and a log grows after they were chosen, before they are sent."""
    before, put, once = made(base), Bucket.put, threading.Lock()

    def late(self, *arguments):
        if once.acquire(blocking=False):
            rotate(base, 9)
            with open(base / "job/job.log", "ab") as log:
                log.write(b"more\n")
        put(self, *arguments)

    monkeypatch.setattr(Bucket, "put", late)
    agent.push(base / "job", bucket)
    assert store.results() == before != made(base)
    agent.push(base / "job", bucket)
    assert store.results() == made(base)


def test_what_is_not_what_was_hashed_is_refused(base, bucket, store, monkeypatch):
    """S3 itself notices it."""
    agent.push(base / "job", bucket)
    before, put = store.results(), Bucket.put

    def late(self, name, content, digest=None):
        content = b"other" if name.startswith("metrics") else content
        put(self, name, content, digest)

    monkeypatch.setattr(Bucket, "put", late)
    write(base / "run/metrics.jsonl", b"{}\n{}\n")
    with pytest.raises(ClientError, match="BadDigest"):
        agent.push(base / "job", bucket)
    assert store.results() == before
    monkeypatch.setattr(Bucket, "put", put)
    agent.push(base / "job", bucket)
    assert store.results() == made(base)


class Killed(BaseException):
    pass


def die_at(client, number: int, event: str) -> None:
    """The process ends before its request of this number is sent, or when its answer comes."""
    left = [number]

    def count(**_):
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    client.meta.events.register(event, count)


@pytest.mark.parametrize("event", ["before-send.s3", "response-received.s3"])
def test_killed_at_any_request_and_run_again(base, bucket, store, event):
    """The manifest is true before, at the kill and after; at the end nothing is left over."""
    step = 8
    agent.push(base / "job", bucket)
    for number in range(50):
        step += 1
        before = store.results()
        rotate(base, step)
        write(base / "run/metrics.jsonl", b"{}\n" * step)
        client = boto3.client("s3")
        die_at(client, number, event)
        try:
            agent.push(base / "job", Bucket(URI, client))
            break
        except Killed:
            assert store.results() in (before, made(base))
        agent.push(base / "job", bucket)
        assert store.results() == made(base)
        assert not store.leftovers()
    assert 4 <= number < 50


def test_another_machines_results_are_not_replaced(base, bucket, store, tmp_path):
    agent.push(base / "job", bucket)
    before, other = store.read(), tmp_path / "other"
    (other / "job").mkdir(parents=True)
    tell(other, RUNNING)
    with pytest.raises(SystemExit, match="`pull` first"):
        agent.push(other / "job", bucket)
    assert store.read() == before
    agent.pull(other / "job", bucket)
    agent.push(other / "job", bucket)
    assert store.results() == made(other)


# As a program


def start(base: Path, *options: str, poll_s: float = 0.05) -> subprocess.Popen:
    """The program, but that how the job is stands in a file."""
    code = f"""
import json, sys
sys.path.insert(0, {str(AGENT.parent)!r})
from agent import bucket, outbox
bucket.POLL_S = {poll_s}
for module in (bucket, outbox):
    module.describe_job = lambda folder: json.loads((folder.parent / "told").read_text())
bucket.main()
"""
    words = [sys.executable, "-c", code, str(base / "job"), "push", URI, *options]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True)


def seen(store, path: str) -> bool:
    return path in (store.results() or {})


def test_it_pushes_until_the_job_has_ended(base, store, cloud_api):
    process = start(base)
    wait_until(lambda: seen(store, "config.json"))
    assert not (base / "job/pushed").exists()
    cloud_api.faults = [Fault("PutObject", "AccessDenied", 2)]
    write(base / "run/summary.json", b"{}")
    tell(base, ENDED)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert errors.count("AccessDenied") >= 1 and "Traceback" not in errors
    assert json.loads((base / "job/pushed").read_text()) == ENDED
    (base / "job/pushed").unlink()
    assert store.results() == made(base)
    assert not store.leftovers()


def test_sigterm_lets_it_look_once_more(base, store):
    process = start(base, poll_s=1000)
    wait_until(lambda: seen(store, "config.json"))
    write(base / "run/saved", b"at the last moment")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert store.results() == made(base)
    assert not (base / "job/pushed").exists()


def test_sigterm_does_not_cut_a_look(base, store, cloud_api):
    process = start(base, poll_s=1000)
    wait_until(lambda: "PutObject" in {call.action for call in cloud_api.calls}, interval=0.002)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert store.results() == made(base)


def test_nothing_ends_a_push_before_its_job(base, store, monkeypatch, capsys):
    tell(base, ENDED)
    monkeypatch.setattr(agent, "POLL_S", 0.01)
    failures, push = [MemoryError(), ResponseParserError("garbled")], agent.push

    def fail_first(*asked):
        if failures:
            raise failures.pop()
        return push(*asked)

    monkeypatch.setattr(agent, "push", fail_first)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        assert agent.keep_pushing(base / "job", here(), once=False) == ENDED
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    (base / "job/pushed").unlink()
    assert store.results() == made(base)
    assert "garbled" in capsys.readouterr().err


def test_a_killed_program_is_started_again(base, store, cloud_api):
    cloud_api.faults = [lost_answers("PutObject")]
    process = start(base)
    wait_until(lambda: [call.action for call in cloud_api.calls].count("PutObject") > 3)
    process.kill()
    process.communicate()
    assert store.results() is None
    cloud_api.faults = []
    process = start(base, "--once")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert store.results() == made(base)


def test_once_tells_of_a_failure_by_its_exit_code(base, store, cloud_api):
    cloud_api.faults = [Fault("ListObjectsV2", "AccessDenied")]
    process = start(base, "--once")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("push: ") and "AccessDenied" in errors and errors.count("\n") == 1


# Back


def test_a_cut_pull_continues_and_a_done_one_changes_nothing(
    base, bucket, store, tmp_path, monkeypatch
):
    agent.push(base / "job", bucket)
    other, save = tmp_path / "other", Bucket.save
    (other / "job").mkdir(parents=True)
    for number in range(50):
        left = [Killed] * 50
        left[:0] = [None] * number

        def dying(self, *arguments, left=left):
            if left.pop(0):
                raise Killed
            save(self, *arguments)

        monkeypatch.setattr(Bucket, "save", dying)
        try:
            agent.pull(other / "job", bucket)
            break
        except Killed:
            assert made(other).items() <= store.results().items()
            assert not (other / "job" / agent.TAKEN).exists()
    assert 3 <= number < 50
    sent = made(base)
    del sent["job/status.json"]
    assert made(other) == sent
    write(other / "run/metrics.jsonl", b"newer here")
    write(base / "run/later", b"")
    agent.push(base / "job", bucket)
    agent.pull(other / "job", bucket)
    assert made(other) == {**sent, "metrics.jsonl": b"newer here"}


def test_nothing_to_pull(bucket, tmp_path):
    (tmp_path / "job").mkdir()
    assert agent.pull(tmp_path / "job", bucket) == {"files": 0}


def a_manifest(*paths: str) -> bytes:
    files = [
        {"path": path, "size": 4, "sha256": sha256(b"evil"), "growing": False} for path in paths
    ]
    return json.dumps({"files": files}).encode()


@pytest.mark.parametrize("path", ["x/../../out", "../out", "/out", "x//x", "", "a\0b", "job/./x"])
def test_a_path_that_leads_elsewhere_is_refused(bucket, store, tmp_path, path):
    store.write(MANIFEST, a_manifest("fine", path))
    store.write(f"{PREFIX}fine@{sha256(b'evil')}", b"evil")
    (tmp_path / "a/job").mkdir(parents=True)
    with pytest.raises(Damaged, match=r"manifest\.json: expected paths of results, found"):
        agent.pull(tmp_path / "a/job", bucket)
    assert not files_in(tmp_path, ".")


@pytest.mark.parametrize("text", [b"", b"[]", b'{"files": 3}', b'{"files": [{}]}', b"\xff"])
def test_a_broken_manifest_is_one_message(bucket, store, text):
    store.write(MANIFEST, text)
    with pytest.raises(Damaged, match=r"manifest\.json: "):
        bucket.manifest()


def test_what_arrives_otherwise_is_no_result(bucket, store, tmp_path):
    store.write(MANIFEST, a_manifest("a"))
    store.write(f"{PREFIX}a@{sha256(b'evil')}", b"good")
    (tmp_path / "job").mkdir()
    with pytest.raises(Damaged, match=r"a@.* was damaged on the way"):
        agent.pull(tmp_path / "job", bucket)
    assert not made(tmp_path)


# Data


@pytest.fixture
def corpus(store) -> Bucket:
    for name, content in {"a.wav": b"a", "deep/b.wav": os.urandom(2_000_000), "deep/": b""}.items():
        store.write(f"corpus/{name}", content)
    return here(f"s3://{NAME}/corpus")


def gets(cloud_api) -> int:
    return sum(call.action == "GetObject" for call in cloud_api.calls)


def test_data_come_once(corpus, store, tmp_path, cloud_api):
    there = {key: content for key, content in store.read().items() if key.startswith("corpus/")}
    del there["corpus/deep/"]
    folder = tmp_path / "corpus"
    assert agent.pull_data(corpus, folder) == {"files": 2}
    assert files_in(tmp_path, "corpus") == there
    assert gets(cloud_api) == 2
    agent.pull_data(corpus, folder)
    assert gets(cloud_api) == 2
    write(folder / "a.wav", b"changed here")
    agent.pull_data(corpus, folder)
    assert gets(cloud_api) == 3
    assert files_in(tmp_path, "corpus") == there


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/out"])
def test_data_stay_in_their_folder(corpus, store, tmp_path, name):
    store.write(f"corpus/{name}", b"")
    with pytest.raises(Damaged, match=f"expected paths of files, found '{name}'"):
        agent.pull_data(corpus, tmp_path / "corpus")
    assert not files_in(tmp_path, ".")


def test_no_data(store, tmp_path):
    with pytest.raises(Damaged, match="found 'nothing'"):
        agent.pull_data(here(f"s3://{NAME}/nothing"), tmp_path)


def test_the_program_brings_either(base, bucket, corpus, tmp_path):
    agent.push(base / "job", bucket)
    (tmp_path / "other/job").mkdir(parents=True)
    program = [sys.executable, str(AGENT), "bucket", str(tmp_path / "other/job")]
    data = ["data", f"s3://{NAME}/corpus", str(tmp_path / "other/data/0")]
    for words in (["pull", URI], data):
        done = subprocess.run([*program, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.removeprefix("mmattn:"))["files"] > 0
    assert {"run/config.json", "data/0/a.wav"} <= files_in(tmp_path / "other", ".").keys()
    (tmp_path / "other/job" / agent.TAKEN).unlink()
    words = ["pull", "s3://no-such-bucket/x"]
    done = subprocess.run([*program, *words], capture_output=True, text=True)
    assert done.returncode == 1 and "NoSuchBucket" in done.stderr
    assert "Traceback" not in done.stderr
