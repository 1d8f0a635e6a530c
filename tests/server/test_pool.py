"""Clients that go away and processes that die or hang: places are free again, nothing is left."""

import io
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.server.served import Server, wait_until


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
    server.signal_workers(signal.SIGCONT)
    assert server.predict(clip)[0] == 200


@pytest.mark.slow
def test_a_client_that_goes_away_while_it_sends(server):
    with server.begin(b"x", 1000):
        wait_until(lambda: server.health()["taken"] == 1)
    wait_until(lambda: server.health()["taken"] == 0, 30)


@pytest.mark.slow
def test_what_takes_too_long_is_ended(commands, clip, tmp_path):
    with Server(commands, tmp_path, "--workers", 1, "--timeout", 3) as one:
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


@pytest.mark.slow
def test_a_process_that_is_killed_is_replaced(server, clip):
    server.signal_workers(signal.SIGSTOP)
    with ThreadPoolExecutor() as clients:
        asked = [clients.submit(server.predict, clip) for _ in range(3)]
        wait_until(lambda: server.health()["taken"] == 3)
        time.sleep(0.5)
        server.signal_workers(signal.SIGKILL)
        answers = sorted(one.result()[:2] for one in asked[:3])
    died = {"detail": "the process that read the clip died; another replaces it"}
    assert answers[1:] == [(500, died), (500, died)] and answers[0][0] == 200
    wait_until(lambda: server.health()["workers"] == 2)
    server.signal_workers(signal.SIGKILL)
    time.sleep(0.5)  # they die while they have nothing to do
    assert server.predict(clip)[0] == 200


@pytest.mark.slow
def test_asked_to_end_it_finishes_what_it_began(commands, clip, tmp_path):
    with Server(commands, tmp_path, "--workers", 1) as one:
        (worker,) = one.workers()
        os.kill(worker, signal.SIGSTOP)
        with ThreadPoolExecutor() as clients:
            asked = clients.submit(one.predict, clip)
            wait_until(lambda: one.left())
            os.kill(worker, signal.SIGTERM)  # as where a whole group gets the signal
            one.process.terminate()
            time.sleep(0.5)
            assert not asked.done()
            with pytest.raises(ConnectionRefusedError):
                one.health()
            os.kill(worker, signal.SIGCONT)
            assert asked.result()[0] == 200
        assert one.process.wait(300) == 0
        assert [*tmp_path.iterdir()] == [] and not Path(f"/proc/{worker}").exists()


@pytest.mark.slow
def test_asked_twice_it_ends_at_once(commands, clip, tmp_path):
    with Server(commands, tmp_path, "--workers", 1) as one:
        one.signal_workers(signal.SIGSTOP)
        with ThreadPoolExecutor() as clients:
            asked = clients.submit(one.predict, clip)
            wait_until(lambda: one.left())
            one.process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            assert one.end(signal.SIGINT) == ["stopped"]
            assert asked.exception() or asked.result()[0] == 500
        assert one.process.returncode == 0 and [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_nothing_is_left_of_a_server_that_is_killed(commands, clip, tmp_path):
    with Server(commands, tmp_path, "--workers", 1) as one:
        (worker,) = one.workers()
        os.kill(worker, signal.SIGSTOP)
        with one.begin(clip):
            wait_until(lambda: one.left())
            assert [path.name for path in one.left()] == ["clip.npz"]
            one.process.kill()
            one.process.wait()
        os.kill(worker, signal.SIGCONT)
        one.process.stdout.read()  # until the last process has closed it
        assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_a_file_that_unpacks_to_too_much(server, clip, run):
    frames = np.zeros((400_000, run.widths["audio"]), np.float32)  # 0.6 GB
    np.savez_compressed(content := io.BytesIO(), audio_features=frames)
    status, answer, _ = server.predict(content.getvalue())
    assert status == 422 and "MemoryError" in answer["detail"]
    assert server.predict(clip)[0] == 200
