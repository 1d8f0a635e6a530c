"""A network of the user's own: tiny ones that are made here, whose values are known."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmattn.config import ExtractConfig
from mmattn.errors import UserError
from mmattn.media.extract import config_like, extract_clip, extractor_of
from mmattn.media.faces import Face
from mmattn.media.onnx_face import OnnxFace

onnx = pytest.importorskip("onnx", reason="onnx is not installed: extra [test]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: extra [onnx]")
FACE = Face(np.array([10.0, 10, 20, 20]), np.zeros((6, 2)), 1.0)
DEFAULT = ExtractConfig()


@pytest.fixture
def network(tmp_path):
    """`network(shape, axes)`: the file of a network that gives its input's mean over these axes."""

    def make(shape: list, axes: list[int], kind: int = onnx.TensorProto.FLOAT) -> Path:
        node = onnx.helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=axes, keepdims=0)
        entry = onnx.helper.make_tensor_value_info("pixels", kind, shape)
        output = onnx.helper.make_tensor_value_info("mean", kind, None)
        graph = onnx.helper.make_graph([node], "mean", [entry], [output])
        opset = [onnx.helper.make_opsetid("", 13)]
        model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
        path = tmp_path / "network.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return make


def face_of(model: Path | None, **options) -> OnnxFace:
    default = {"size": None, "colour": "rgb", "mean": (0.5,), "std": (0.5,), "margin": 1.0}
    return OnnxFace(model, **{**default, **options})


def frame(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((30, 30, 3), colour, np.uint8)


@pytest.mark.parametrize(
    ("shape", "axes"), [([1, 3, 8, 8], [2, 3]), (["N", 8, 8, 3], [1, 2])], ids=["NCHW", "NHWC"]
)
def test_channels_in_their_order_and_scale(network, shape, axes):
    path = network(shape, axes)
    row = face_of(path).start()(frame((255, 0, 51)), FACE)
    assert row.dtype == np.float32
    np.testing.assert_allclose(row, [1, -1, -0.6], atol=1e-6)
    scale = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 2.0)}
    row = face_of(path, colour="bgr", **scale).start()(frame((255, 0, 51)), FACE)
    np.testing.assert_allclose(row, [(0.2 - 0.1) / 0.5, -0.2 / 0.25, 0.7 / 2], atol=1e-6)


def test_grey_and_the_size_of_a_network_that_leaves_it_open(network):
    path = network([1, 1, "H", "W"], [1])  # gives the image
    options = {"colour": "grey", "mean": (0.0,), "std": (1.0,)}
    row = face_of(path, size=4, **options).start()(frame((255, 0, 0)), FACE)
    np.testing.assert_allclose(row, [76 / 255] * 16, rtol=1e-6)


def test_the_margin_around_the_face(network):
    path = network([1, 3, 8, 8], [1, 2, 3])
    shown = frame((255, 255, 255))
    shown[10:20, 10:20] = 0
    inside = face_of(path, mean=(0.0,), std=(1.0,)).start()
    np.testing.assert_allclose(inside(shown, FACE), [0], atol=1e-6)
    around = face_of(path, mean=(0.0,), std=(1.0,), margin=2.0).start()
    np.testing.assert_allclose(around(shown, FACE), [0.75], atol=0.01)  # of 20 × 20 pixels
    assert around(shown, FACE._replace(box=FACE.box + 100)) is None


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ([1, 3, 8, 8], {"colour": "grey"}, r"\[1, 1, S, S\] or .* got \[1, 3, 8, 8\]"),
        ([1, 3], {}, r"expected an input .* got \[1, 3\]"),
        ([1, 3, 8, 9], {}, "--onnx-size None: expected the side .* are 8 and 9"),
        ([1, 3, 8, 8], {"size": 9}, "--onnx-size 9: expected .* are 8 and 8"),
        ([1, 3, "H", "W"], {}, "--onnx-size None: expected .* are H and W"),
        ([2, 3, 8, 8], {}, "network.onnx: .*Got: 1 Expected: 2"),
        ([1, 3, 8, 8], {"mean": (0.1, 0.2)}, "--onnx-mean: expected one number.*got 2"),
        ([1, 3, 8, 8], {"std": (0.5, 0.0, 0.5)}, r"--onnx-std 0\.0: expected above 0"),
        ([1, 3, 8, 8], {"margin": 0.0}, r"--onnx-margin 0\.0: expected above 0"),
    ],
)
def test_options_that_do_not_fit_the_network(network, shape, options, message):
    with pytest.raises(UserError, match=message):
        face_of(network(shape, [1]), **options).start()


def test_files_that_are_no_network_for_pixels(network, tmp_path):
    with pytest.raises(UserError, match="--onnx-model is missing"):
        face_of(None).record()
    with pytest.raises(UserError, match=r"--onnx-model .*none\.onnx: No such file"):
        face_of(tmp_path / "none.onnx").record()
    path = network([1, 3, 8, 8], [1], onnx.TensorProto.DOUBLE)
    with pytest.raises(UserError, match=r"network\.onnx: .*expected: \(tensor\(double\)\)"):
        face_of(path).start()
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"network\.onnx: not an ONNX network: "):
        face_of(path).start()


def test_without_onnxruntime_the_extra_is_named(network, monkeypatch):
    path = network([1, 3, 8, 8], [1])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime.*pip install 'mmattn\[onnx\]'"):
        face_of(path).start()


def test_a_record_has_the_options_and_what_is_in_the_file(network):
    path = network([1, 3, 8, 8], [2, 3])
    config = replace(
        DEFAULT, audio={}, video={"video": "onnx"}, onnx_model=path, onnx_std=(0.2, 0.3, 0.4)
    )
    record = {"video": json.loads(json.dumps(extractor_of(config)["video"]))}
    settings = record["video"]["settings"]
    assert settings["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert str(path) not in json.dumps(record)
    assert config_like(record, replace(DEFAULT, onnx_model=path)) == config
    settings["sha256"] = "another"
    with pytest.raises(UserError, match=r"video sha256 .* instead of .*another"):
        config_like(record, replace(DEFAULT, onnx_model=path))
    with pytest.raises(UserError, match="--onnx-model is missing"):
        config_like(record, DEFAULT)


@pytest.mark.slow
def test_features_of_a_clip_beside_others(network, talking, face_models):
    path, _ = talking("short.mp4", seconds=1.0)
    video = {"video_onnx": "onnx", "video_expression": "expression", "video_face_mesh": "face-mesh"}
    model = network([1, 3, 8, 8], [2, 3])
    streams = extract_clip(path, ExtractConfig(face_models, video=video, onnx_model=model)).streams
    widths = {"video_onnx": 3, "video_expression": 14, "video_face_mesh": 32}
    assert {name: streams[name].frames.shape for name in video} == {
        name: (15, width) for name, width in widths.items()
    }
    colours = streams["video_onnx"].frames
    assert (np.abs(colours) < 1).all() and (colours.std(axis=0) < 0.2).all()
    assert colours.mean(axis=0).argmax() == 0  # a face has more red than blue
