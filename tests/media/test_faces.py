import numpy as np
import pytest
import skimage
from scipy.special import expit

from mmattn.media.faces import (
    Face,
    FaceDetector,
    FaceTracker,
    Model,
    anchors,
    cut_square,
    logistic,
    merge_boxes,
    overlap,
)
from mmattn.media.mesh import DISTANCES, FaceMesh, distances, find_mesh
from mmattn.media.models import FACE_DETECTOR, FACE_MESH
from tests.media.talking import pictures

SQUARE = (320, 320)


@pytest.fixture(scope="module")
def detect(face_models):
    return FaceDetector((face_models / FACE_DETECTOR).read_bytes())


@pytest.fixture(scope="module")
def features(face_models):
    return FaceMesh(face_models).start()


def face_at(left: float, side: float = 100, score: float = 0.9) -> Face:
    box = np.array([left, 0, left + side, side])
    return Face(box, np.zeros((6, 2)), score)


def test_the_face_of_a_photograph_is_found_with_its_points(detect):
    (face,) = detect(skimage.data.astronaut())
    left, top, right, bottom = face.box
    assert 150 < left < 200 and 240 < right < 300 and 50 < top < 100 and 140 < bottom < 200
    right_eye, left_eye, nose, mouth, *_ = face.points
    np.testing.assert_allclose(mouth, [223, 142], atol=8)  # as tests/media/talking.py measured it
    assert right_eye[0] < nose[0] < left_eye[0] and right_eye[1] < nose[1] < mouth[1]
    assert face.score > 0.8


@pytest.mark.parametrize("size", [(560, 320), (320, 560), (400, 320)], ids=str)
def test_pixels_are_those_of_the_picture_whatever_its_shape(detect, size):
    (picture, *_) = pictures(SQUARE, 1, 0.0, 1.0, (0.0, 0.0))
    width, height = size
    wide = np.zeros((height, width, 3), np.uint8)
    left, top = width - 320, height - 320
    wide[top:, left:] = picture
    (face,), (moved,) = detect(picture), detect(wide)
    np.testing.assert_allclose(moved.box - [left, top, left, top], face.box, atol=20)
    np.testing.assert_allclose(moved.points - [left, top], face.points, atol=12)


def test_a_face_too_small_for_the_whole_is_found_in_a_part(detect):
    photo = skimage.data.astronaut()
    wide = np.zeros((512, 1100, 3), np.uint8)
    wide[:, 588:] = photo
    (face,), (found,) = detect(photo), detect(wide)
    np.testing.assert_allclose(found.box - [588, 0, 588, 0], face.box, atol=1)


def test_no_face_where_there_is_none(detect):
    (picture, *_) = pictures(SQUARE, 0, 0.0, 1.0, (0.0, 0.0))
    assert detect(picture) == []


def test_anchors_are_the_middles_of_both_grids():
    places = anchors()
    assert places.shape == (896, 2)
    np.testing.assert_allclose(
        places[[0, 1, 2, 511]], [[1 / 32] * 2] * 2 + [[3 / 32, 1 / 32]] + [[31 / 32] * 2]
    )
    np.testing.assert_allclose(
        places[[512, 517, 518, 895]], [[1 / 16] * 2] * 2 + [[3 / 16, 1 / 16]] + [[15 / 16] * 2]
    )


def test_scores_of_any_size_are_those_of_scipy():
    logits = np.array([-1e4, -100, -3, 0, 1e-3, 5, 100, 1e4], np.float32)
    np.testing.assert_allclose(logistic(logits), expit(logits), rtol=1e-6, atol=1e-30)


def test_boxes_that_overlap_are_merged_by_their_scores():
    found = np.zeros((3, 8, 2))
    found[:, 0] = [[50, 50], [54, 50], [200, 50]]  # middles
    found[:, 1] = 40  # sizes
    first, second = merge_boxes(found, np.array([0.9, 0.6, 0.7]))
    assert (first.score, second.score) == (0.9, 0.7)
    middle = (0.9 * 50 + 0.6 * 54) / 1.5
    np.testing.assert_allclose(first.box, [middle - 20, 30, middle + 20, 70])
    assert overlap(face_at(0).box, face_at(50).box) == pytest.approx(1 / 3)
    assert overlap(face_at(0).box, face_at(100).box) == 0


@pytest.mark.parametrize("box", [(2, 2, 6, 6), (3, 2, 5, 6), (2, 3.4, 6, 4.6)])
def test_a_square_around_the_face(box):
    frame = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    face = Face(np.array(box, float), np.zeros((6, 2)), 1.0)
    np.testing.assert_array_equal(cut_square(frame, face, 1.0, 4), frame[2:6, 2:6])
    np.testing.assert_array_equal(cut_square(frame, face, 1.5, 6), frame[1:7, 1:7])
    over = face._replace(box=face.box - 4)  # the upper left quarter is in the frame
    square = np.asarray(cut_square(frame, over, 1.0, 4))
    np.testing.assert_array_equal(square[2:, 2:], frame[:2, :2])
    assert not square[:2].any() and not square[:, :2].any()
    assert cut_square(frame, face._replace(box=face.box - 9), 1.0, 4) is None
    assert cut_square(frame, face._replace(box=face.box + 9), 1.0, 4) is None


def test_the_largest_face_is_followed_and_then_the_one_that_overlaps_it():
    seen = [
        [],
        [face_at(0, 60), face_at(200, 100)],
        [face_at(0, 150), face_at(220, 90)],
        [face_at(0, 150)],
        [face_at(0, 150), face_at(230, 90)],
    ]
    followed = [*map(FaceTracker(), seen)]
    assert followed[0] is None and followed[3] is None
    assert [followed[n].box[0] for n in (1, 2, 4)] == [200, 220, 230]


def test_after_a_cut_another_face_is_followed():
    followed = [*map(FaceTracker(), [[face_at(0)], *([[face_at(300)]] * 16)])]
    assert [face and face.box[0] for face in followed] == [0, *[None] * 15, 300]


def test_distances_of_points_in_units_of_the_head():
    points = np.random.default_rng(0).normal(size=(468, 3))
    found = distances(points)
    assert found.shape == (len(DISTANCES),) and found.dtype == np.float32
    rigid = points[[33, 133, 362, 263, 168, 6, 197]]
    size = np.sqrt(((rigid - rigid.mean(0)) ** 2).sum(1).mean())
    assert found[0] == pytest.approx(np.linalg.norm(points[13] - points[14]) / size, rel=1e-6)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    np.testing.assert_allclose(distances(3 * points @ turn + [7, -5, 2]), found, rtol=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"roll": 20.0}, {"roll": -20.0}, {"scale": 0.75}, {"shift": (40.0, 20.0)}],
    ids=str,
)
def test_features_do_not_depend_on_where_the_head_is(detect, features, change):
    def of(**head):
        options = {"roll": 0.0, "scale": 1.0, "shift": (0.0, 0.0), **head}
        drawn = pictures(SQUARE, 1, **options)
        return np.array([features(one, detect(one)[0]) for one in drawn[::5]])

    still, moved = of(), of(**change)
    # What the mouth does shows; what the head does hardly.
    opening = list(DISTANCES).index("mouth opening")
    assert np.ptp(still[:, opening]) > 0.1
    np.testing.assert_allclose(moved[:, opening], still[:, opening], atol=0.08)
    steady = [n for n, name in enumerate(DISTANCES) if "brow" in name or "eye" in name]
    assert np.abs(moved - still)[:, steady].mean() < 0.06


def test_a_part_of_the_picture_without_a_face_has_no_mesh(features):
    (picture, *_) = pictures(SQUARE, 0, 0.0, 1.0, (0.0, 0.0))
    nothing = Face(np.array([100.0, 100, 200, 200]), np.array([[120.0, 130], [180, 130]]), 0.9)
    assert features(picture, nothing) is None


def test_the_mesh_lies_on_the_face(face_models, detect):
    photo = skimage.data.astronaut()
    (face,) = detect(photo)
    points = find_mesh(Model((face_models / FACE_MESH).read_bytes()), photo, face)
    assert points.shape == (468, 3)
    for own, expected in (
        (points[[13, 14]].mean(0)[:2], face.points[3]),
        (points[1, :2], face.points[2]),
    ):
        assert np.linalg.norm(own - expected) < 10
    assert (points[:, 0].min() > face.box[0] - 20) and (points[:, 0].max() < face.box[2] + 20)
