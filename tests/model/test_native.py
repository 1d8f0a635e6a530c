"""The C++ kernel: equal to the scans for every size of tile, and never in the way."""

import os
import platform
import subprocess
import sys
from shutil import which

import jax
import numpy as np
import pytest

from mmattn.errors import UserError
from mmattn.model import native, scan

needs_kernel = pytest.mark.skipif(which("c++") is None, reason="no C++ compiler")


@needs_kernel
@pytest.mark.parametrize("reverse", [False, True], ids=["ahead", "back"])
@pytest.mark.parametrize("with_dx", [False, True])
@pytest.mark.parametrize(
    ("frames", "clips", "features", "units"),
    [(5, 1, 1, 1), (37, 7, 20, 16), (37, 13, 90, 32), (23, 130, 50, 70), (4, 12, 64, 64)],
)
def test_it_computes_what_the_scans_compute(frames, clips, features, units, with_dx, reverse):
    assert native.load()
    compare(frames, clips, features, units, with_dx, reverse)


@pytest.mark.slow
@needs_kernel
@pytest.mark.parametrize("without", ["-mno-avx512f", "-mno-avx"])
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86")
def test_other_processors_have_other_tiles_and_the_same_results(without, tmp_path):
    environment = {**os.environ, "CXXFLAGS": without, "HOME": str(tmp_path)}
    subprocess.run([sys.executable, __file__], env=environment, check=True)


def compare(frames, clips, features, units, with_dx, reverse):
    """Kernel and scans on random ragged clips."""
    rng = np.random.default_rng(frames)

    def draw(*shape):
        return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    x, dh = draw(frames, clips, features), draw(frames, clips, units)
    length = rng.integers(0, frames + 1, clips).astype(np.int32)
    kernels = draw(features, 4 * units), draw(units, 4 * units)
    bias = draw(4 * units)

    @jax.jit(static_argnums=0)
    def run(implementation):
        h, c, t = implementation.forward(x, length, *kernels, bias, reverse)
        kept = kernels[0] if with_dx else None
        gradients = implementation.backward(dh, x, h, c, t, length, kept, kernels[1], reverse)
        return h, c, *gradients

    for found, expected in zip(run(native), run(scan), strict=True):
        if expected is None:
            assert found is None
            continue
        scale = np.abs(expected).max(initial=1e-6)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * scale)


@needs_kernel
def test_a_nan_stays_in_its_clip():
    assert native.load()
    x = np.zeros((3, 8, 2), np.float32)
    x[1, 4] = np.nan
    kernels = np.ones((2, 12), np.float32), np.ones((3, 12), np.float32)
    length, bias = np.full(8, 3, np.int32), np.zeros(12, np.float32)
    h, _, _ = native.forward(x, length, *kernels, bias, False)
    broken = ~np.isfinite(h).all(-1)
    assert broken.tolist() == [[False] * 8, *[[row == 4 for row in range(8)]] * 2]


@pytest.mark.slow
def test_a_library_is_built_once(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "CACHE", tmp_path)
    compiler = which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = native.library(compiler)
    made = library.stat()
    assert library.parent.stat().st_mode & 0o777 == 0o700
    assert native.library(compiler) == library
    assert library.stat().st_mtime_ns == made.st_mtime_ns
    assert list(library.parent.iterdir()) == [library]


def test_without_a_compiler_the_scans_serve(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not native.load.__wrapped__()
    assert capsys.readouterr().err == ""


def test_a_misspelt_kernel_is_no_choice(monkeypatch):
    monkeypatch.setenv("MMATTN_KERNEL", "jxa")
    with pytest.raises(UserError, match="MMATTN_KERNEL=jxa: expected native or jax"):
        native.usable.__wrapped__()


def test_a_compiler_that_fails_is_named_and_the_scans_serve(tmp_path, monkeypatch, capsys):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho no space for the moon >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setattr(native, "CACHE", tmp_path / "cache")
    assert not native.load.__wrapped__()
    message = capsys.readouterr().err
    assert str(broken) in message
    assert "no space for the moon" in message


@needs_kernel
def test_it_can_be_mapped():
    assert native.load()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 3, 4)).astype(np.float32)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((4, 8), (2, 8), (8,))]
    length = np.array([5, 2, 0], np.int32)

    def states(run):
        return jax.vmap(lambda x: run.forward(x, length, *weights, False)[0])(x)

    found, expected = states(native), states(scan)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


if __name__ == "__main__":  # with the processor's features that CXXFLAGS leaves
    assert native.load()
    for reverse in (False, True):
        compare(37, 13, 90, 32, True, reverse)
        compare(23, 5, 21, 19, True, reverse)
