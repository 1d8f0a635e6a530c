"""The machine's best rate of matrix products, the upper bound for an LSTM step.

`python -m benchmarks.gemm LIBRARY` measures one library in its own process.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks.machine import REPOSITORY
from mmattn.errors import UserError

# A square product, and that of a layer's input: 24 clips of 380 frames, 256 features, 512 gates.
SHAPES = ((2048, 2048, 2048), (9120, 256, 512))
REPEATS = 15


def best_rates() -> dict[str, float]:
    """GFLOP/s of the best shape, by library."""
    return {library: max(_measure_apart(library)) for library in LIBRARIES}


def _measure_apart(library: str) -> list[float]:
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.gemm", library],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise UserError(f"the matrix products of {library} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def _numpy(a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
    out = np.empty((len(a), b.shape[1]), np.float32)
    return lambda: np.matmul(a, b, out=out)


def _jax(a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
    import jax

    a, b = jax.device_put((a, b))
    product = jax.jit(jax.numpy.matmul)
    return lambda: product(a, b).block_until_ready()


LIBRARIES = {"numpy": _numpy, "jax": _jax}


def rate(library: str, shape: tuple[int, int, int]) -> float:
    """GFLOP/s of a product [m, k] [k, n], best of `REPEATS`."""
    m, k, n = shape
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(size, np.float32) for size in ((m, k), (k, n)))
    product = LIBRARIES[library](a, b)
    product()
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - begin)
    return 2 * m * k * n / min(seconds) / 1e9


if __name__ == "__main__":
    print(json.dumps([rate(sys.argv[1], shape) for shape in SHAPES]))
