"""What the machine has, and what serves where the system lacks it."""

import ctypes
import os
import platform
from pathlib import Path

import pytest

from mmattn import machine


@pytest.fixture
def without_affinity(monkeypatch):
    for name in ("sched_getaffinity", "sched_setaffinity"):
        monkeypatch.delattr(os, name, raising=False)


def test_without_affinity_all_cores_are_this_process_s(without_affinity, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert machine.own_cores() == [0, 1, 2] and machine.cores() == 3
    machine.pin([1])
    monkeypatch.setattr(os, "cpu_count", lambda: None)  # where the system does not say
    assert machine.own_cores() == [0]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no process can be bound here")
def test_a_process_is_bound_to_the_cores_that_it_has():
    before = machine.own_cores()
    try:
        machine.pin(before[-1:])
        assert machine.own_cores() == before[-1:]
        machine.pin([max(before) + 4096])  # is refused
        assert machine.own_cores() == before[-1:]
    finally:
        machine.pin(before)
    assert machine.cores() == len(before)


def test_the_processor_s_abilities_are_those_that_linux_lists(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda _: "model\t: 1\nflags\t: avx2 fma\nbugs\t:\n")
    assert machine.processor() == "flags\t: avx2 fma"


def test_the_processor_has_its_name_on_macos(monkeypatch, tmp_path):
    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    (tmp_path / "sysctl").write_text('#!/bin/sh\necho "$*" is Apple M1\n')
    (tmp_path / "sysctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    name = "-n machdep.cpu.brand_string is Apple M1"
    assert machine.processor() == f"{platform.machine()} {name}"
    monkeypatch.setenv("PATH", "/nowhere")
    assert machine.processor() == platform.platform()


def test_a_function_of_the_c_library(monkeypatch):
    assert machine.c_function("abs", ctypes.c_int)(-3) == 3
    assert machine.c_function("no_such_function") is None

    def static(_):
        raise OSError("dynamic loading is not supported")

    monkeypatch.setattr(ctypes, "CDLL", static)
    assert machine.c_function("abs", ctypes.c_int) is None
