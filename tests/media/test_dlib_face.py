"""dlib's embedding: near for one face however it is shown, far for another."""

import sys
from importlib import util

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mmattn.errors import UserError
from mmattn.media import dlib_face, models
from mmattn.media.dlib_face import DlibFace
from mmattn.media.faces import Face

BOX = (178, 75, 268, 165)  # the astronaut's face in her photograph
SAME = 0.4  # the distance below which two embeddings surely show one person


@pytest.fixture(scope="module")
def embed():
    pytest.importorskip("dlib", reason="dlib is not installed: extra [dlib]")
    features = DlibFace().start()

    def embedding(picture: np.ndarray, box) -> np.ndarray | None:
        return features(picture, Face(np.array(box, float), np.zeros((6, 2)), 1.0))

    return embedding


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    return Image.fromarray(data.astronaut())


@pytest.fixture(scope="module")
def known(embed, photograph) -> np.ndarray:
    return embed(np.asarray(photograph), BOX)


def test_it_has_128_values_and_is_the_same_again(known, embed, photograph):
    assert known.shape == (128,) and known.dtype == np.float32
    assert 1 < np.linalg.norm(known) < 2  # dlib trained it to distances, not to a length
    np.testing.assert_array_equal(embed(np.asarray(photograph), BOX), known)


def test_a_box_that_is_a_little_off_changes_little(known, embed, photograph):
    for shift in ((-8, 4, 2, 10), (6, -9, 6, -9), (-15, -15, 15, 15)):
        other = embed(np.asarray(photograph), np.add(BOX, shift))
        assert np.linalg.norm(other - known) < SAME / 2


def test_a_face_elsewhere_larger_rolled_or_brighter_is_the_same_face(known, embed, photograph):
    moved = Image.new("RGB", (700, 700))
    moved.paste(photograph, (150, 100))
    larger = photograph.resize((768, 768))
    rolled = photograph.rotate(15, center=(223, 120))
    brighter = ImageEnhance.Brightness(photograph).enhance(1.4)
    shown = (
        (moved, np.add(BOX, (150, 100, 150, 100))),
        (larger, np.multiply(BOX, 1.5)),
        (rolled, BOX),
        (brighter, BOX),
    )
    for picture, box in shown:
        assert np.linalg.norm(embed(np.asarray(picture), box) - known) < SAME


def test_a_picture_with_other_strides_is_read_rightly(known, embed, photograph):
    turned = np.rot90(np.ascontiguousarray(np.rot90(photograph)), -1)
    assert not turned.flags.c_contiguous
    np.testing.assert_array_equal(embed(turned, BOX), known)


def test_what_is_no_face_is_far(known, embed, photograph):
    assert np.linalg.norm(embed(np.asarray(photograph), (400, 400, 500, 500)) - known) > 0.6


@pytest.mark.parametrize(
    "box", [(600, 600, 700, 700), (-90, 20, -2, 110), (100, 512, 190, 602), (50, 50, 50, 50)]
)
def test_a_face_outside_the_frame_is_none(embed, photograph, box):
    assert embed(np.asarray(photograph), box) is None


def test_a_face_at_the_edge_has_values(embed, photograph):
    assert np.isfinite(embed(np.asarray(photograph), (-20, -20, 80, 80))).all()


def test_another_model_file_is_refused(embed, monkeypatch):
    monkeypatch.setitem(models.SHA256, models.DLIB_EMBEDDING, "0" * 64)
    with pytest.raises(UserError, match=rf"{models.DLIB_EMBEDDING}.*0{{64}}.*55533b28"):
        DlibFace().start()


def test_without_dlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(UserError, match=r"dlib.*pip install 'mmattn\[dlib\]'"):
        DlibFace().start()


def test_without_the_model_package_the_extra_is_named(embed, monkeypatch):
    def find_spec(name):
        return None if name == "face_recognition_models" else util.find_spec(name)

    monkeypatch.setattr(dlib_face, "find_spec", find_spec)
    with pytest.raises(UserError, match=r"face-recognition-models.*pip install 'mmattn\[dlib\]'"):
        DlibFace().start()
