"""FaceNet: the numbers of facenet-pytorch, and only from the right file."""

import hashlib
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from mmattn.errors import UserError
from mmattn.media import models
from mmattn.media.facenet import FaceNet, cut_out
from mmattn.media.faces import Face

# What InceptionResnetV1 and extract_face of facenet-pytorch 2.6.0 make (torch 2.13 on a processor)
# of the picture and the weights below: the first values for three boxes.
EXPECTED = {
    (100.4, 50.9, 260.2, 200.7): (
        -0.0445536,
        0.0397647,
        -0.0508312,
        -0.0140903,
        0.0337860,
        -0.0831682,
    ),
    (-30.0, -10.5, 90.0, 130.0): (
        -0.0460105,
        0.0312538,
        -0.0536054,
        -0.0163825,
        0.0382909,
        -0.0805421,
    ),
    (20.0, 20.0, 80.0, 90.0): (
        -0.0465913,
        0.0263913,
        -0.0463859,
        -0.0101916,
        0.0340582,
        -0.0729334,
    ),
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: extra [facenet]")


@pytest.fixture(scope="module")
def made_weights(torch, tmp_path_factory) -> Path:
    """A file like the real one, with values that follow from each parameter's name."""
    from mmattn.media.inception import inception_resnet_v1

    shapes = {
        name: tuple(value.shape) for name, value in inception_resnet_v1().state_dict().items()
    }
    shapes |= {"logits.weight": (8631, 512), "logits.bias": (8631,)}
    path = tmp_path_factory.mktemp("facenet") / "weights.pt"
    torch.save(
        {name: torch.from_numpy(values(name, shape)) for name, shape in shapes.items()}, path
    )
    return path


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if not shape:
        return np.array(0)  # the count of batches
    normal = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
    if len(shape) > 1:
        normal *= np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        normal = np.exp(0.3 * normal)
    elif name.endswith("weight"):
        normal = 1 + 0.1 * normal
    else:
        normal *= 0.1
    return normal.astype(np.float32)


@pytest.fixture(scope="module")
def embed(made_weights):
    right = hashlib.sha256(made_weights.read_bytes()).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.SHA256, models.FACENET, right)
        features = FaceNet(made_weights).start()
    return lambda picture, box: features(picture, face(box))


def face(box) -> Face:
    return Face(np.array(box, float), np.zeros((6, 2)), 1.0)


def picture() -> np.ndarray:
    """Waves of other directions in each colour, [240, 320, 3]."""
    rows, columns = np.mgrid[:240, :320]
    waves = [np.sin(rows / a + columns / b) for a, b in ((9, 23), (31, -12), (17, 7))]
    return (127.5 + 127 * np.stack(waves, axis=-1)).astype(np.uint8)


@pytest.mark.parametrize("box", EXPECTED)
def test_the_values_are_those_of_facenet_pytorch(embed, box):
    embedding = embed(picture(), box)
    assert embedding.shape == (512,) and embedding.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embedding), 1, rtol=1e-5)
    np.testing.assert_allclose(embedding[:6], EXPECTED[box], atol=1e-5)
    np.testing.assert_array_equal(embed(picture(), box), embedding)


def test_a_face_outside_the_frame_is_none(embed):
    assert embed(picture(), (330, 20, 400, 90)) is None


def test_a_face_is_cut_at_the_edges_of_the_frame():
    shown = picture()
    np.testing.assert_array_equal(
        cut_out(shown, np.array([-5.5, 10.7, 20.9, 300])), shown[10:, :20]
    )


def test_a_file_with_another_checksum_is_not_opened(tmp_path):
    path = tmp_path / models.FACENET
    path.write_bytes(b"something else")
    with pytest.raises(UserError) as caught:
        FaceNet(path).start()
    message = str(caught.value)
    assert str(path) in message and "--facenet" in message
    assert models.SHA256[models.FACENET] in message
    assert hashlib.sha256(b"something else").hexdigest() in message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--facenet: .*nowhere\.pt.*No such file"):
        FaceNet(tmp_path / "nowhere.pt").start()


def test_a_missing_option_is_named():
    with pytest.raises(UserError, match=rf"--facenet.*{models.FACENET}"):
        FaceNet(None).start()


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"right")
    right = hashlib.sha256(b"right").hexdigest()
    monkeypatch.setitem(models.SHA256, models.FACENET, right)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"torch.*pip install 'mmattn\[facenet\]'"):
        FaceNet(path).start()


def test_the_record_does_not_tell_where_the_file_lies():
    assert FaceNet(Path("/a/b.pt")).record() == FaceNet(None).record()
    assert models.FACENET in FaceNet(None).record()["settings"].values()
