"""The file in onnxruntime-web, with the lines of docs/export.md."""

import shutil
import subprocess
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from mmattn.export.check import inputs_of
from mmattn.export.onnx_file import call_onnx, onnx_model
from tests.export.drawn import draw
from tests.export.test_export import written_in_docs
from tests.report.conftest import browser  # noqa: F401

PACKAGE = "onnxruntime-web@1.30.0"
PAGE = """<!doctype html><link rel="icon" href="data:,"><title>onnxruntime-web</title>
<script type="importmap">{"imports": {"onnxruntime-web":
  "/node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs"}}</script>
<script type="module">
import {predict} from "./predict.js"
window.ask = async (clips) => {
  window.found = []
  for (const clip of clips) {
    const inputs = Object.fromEntries(Object.entries(clip).map(
      ([name, [features, ...shape]]) => [name, [Float32Array.from(features), ...shape]]))
    window.found.push(await predict(inputs).catch(String))
  }
}
</script>"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing is said of requests."""


@pytest.fixture
def site(tmp_path):
    """The folder and the address of a server of its files, with onnxruntime-web."""
    if not (npm := shutil.which("npm")):
        pytest.skip("needs npm: apt-get install npm")
    words = [npm, "install", "--prefix", tmp_path, "--ignore-scripts", "--no-audit", PACKAGE]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"npm cannot fetch {PACKAGE}: {done.stderr.strip()[-300:]}")
    handler = partial(Quiet, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}/page.html"
        server.shutdown()


def test_the_browser_predicts_the_same(browser, site):  # noqa: F811
    folder, address = site
    networks, corpus = draw(2, statistics=True)
    content = onnx_model(networks, [0.7, 2.0], corpus, {}).SerializeToString()
    Path(folder, "model.onnx").write_bytes(content)
    Path(folder, "predict.js").write_text(written_in_docs("js"))
    Path(folder, "page.html").write_text(PAGE)
    clips = [
        {
            name: [frames.ravel().tolist(), *frames.shape]
            for name, frames in (
                (name, of.clip(clip).frames) for name, of in corpus.streams.items()
            )
        }
        for clip in range(len(corpus))
    ]
    browser.driver.get(address)
    browser.wait(lambda: browser.run("return !!window.ask"))
    browser.run("window.ask(arguments[0])", clips)
    browser.wait(lambda: browser.run("return window.found.length") == len(clips))
    found = browser.run("return window.found")
    expected = call_onnx(content)(inputs_of(corpus))["probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not browser.complaints()
