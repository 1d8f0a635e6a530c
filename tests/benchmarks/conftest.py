"""What is measured here is as small as can be, so that compiling takes longest."""

import jax
import pytest

from tests.conftest import QUICK


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    """In processes started here; this one, which is of other tests too, has its flags by now."""
    jax.devices()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", QUICK)
        yield
