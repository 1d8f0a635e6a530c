"""Clips of a talking face, good and bad, made when first asked for; not to be altered."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from mmattn.config import ExtractConfig
from mmattn.errors import UserError
from mmattn.media.models import FOLDER, fetch_models
from tests.media.talking import Truth, babble, write_clip, write_talking
from tests.media.training import EMOTIONS, KINDS, SMALL

Talking = Callable[..., tuple[Path, Truth]]


@pytest.fixture(scope="session")
def spoken() -> tuple[np.ndarray, int]:
    """3.9 seconds of babble: samples [n] and their rate."""
    return babble()


@pytest.fixture(scope="session")
def talking(spoken, tmp_path_factory) -> Talking:
    """`talking(name, ...)`: the path of a clip made by `write_talking`, and its truth."""
    made = {}

    def make(name: str, **options) -> tuple[Path, Truth]:
        key = (name, *sorted(options.items()))
        if key not in made:
            path = tmp_path_factory.mktemp("talking") / name
            made[key] = path, write_talking(path, spoken, **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def faulty_clips(talking, tmp_path_factory) -> Path:
    """A folder with cut.mp4, cut.flv, empty.mp4, text.mp4, two-hours.mp4 and two-hours.flv.

    An .mp4 that is cut lacks its index and tells nothing, an .flv still has its first half. The
    clips of two hours, by their headers, last a second.
    """
    folder = tmp_path_factory.mktemp("faulty")
    for suffix, claim in ((".mp4", _claim_in_mp4), (".flv", _claim_in_flv)):
        content = talking(f"short{suffix}", seconds=1.0)[0].read_bytes()
        (folder / f"cut{suffix}").write_bytes(content[: len(content) // 2])
        (folder / f"two-hours{suffix}").write_bytes(claim(content, 7200))
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("This is no clip.\n" * 100)
    return folder


@pytest.fixture(scope="session")
def lacking_clips(spoken, talking, tmp_path_factory) -> Path:
    """A folder with clips that lack something.

    sound.mp4 and sound.wav have no picture, mute.mp4 has no audio stream, silent.mp4 has one of
    zeros, faceless.mp4 shows no face.
    """
    folder = tmp_path_factory.mktemp("lacking")
    samples, rate = spoken
    write_clip(folder / "sound.mp4", [], np.zeros(0), 30, (samples, rate, 0))
    _write_wav(folder / "sound.wav", samples, rate)
    for name, options in (("mute", {"gain": None}), ("silent", {"gain": 0.0})):
        shutil.copy(talking(f"{name}.mp4", **options)[0], folder)
    shutil.copy(talking("faceless.mp4", faces=0)[0], folder)
    return folder


@pytest.fixture(scope="session")
def ravdess_clips(spoken, talking, tmp_path_factory) -> Path:
    """A folder with clips of actor 12, named and split into sound and picture as in RAVDESS.

    01-01-05-01-02-01-12.mp4 has both; 02-01-05-01-02-01-12.mp4 is silent, and its sound is in
    03-01-05-01-02-01-12.wav; 02-01-06-01-02-01-12.mp4 is silent and alone.
    """
    folder = tmp_path_factory.mktemp("ravdess")
    shutil.copy(talking("talking.mp4")[0], folder / "01-01-05-01-02-01-12.mp4")
    silent = talking("silent.mp4", gain=0.0)[0]
    shutil.copy(silent, folder / "02-01-05-01-02-01-12.mp4")
    shutil.copy(silent, folder / "02-01-06-01-02-01-12.mp4")
    _write_wav(folder / "03-01-05-01-02-01-12.wav", *spoken)
    return folder


@pytest.fixture(scope="session")
def oddly_named_clips(talking, tmp_path_factory) -> Path:
    """A folder with good clips of a second whose names need care."""
    folder = tmp_path_factory.mktemp("odd")
    short = talking("short.mp4", seconds=1.0)[0]
    for name in ("two words.mp4", "-rf.mp4", "Überraschung 驚き.MP4", "[b]100%{0}.mp4", "a:b.mp4"):
        shutil.copy(short, folder / name)
    return folder


def _write_wav(path: Path, samples: np.ndarray, rate: int) -> None:
    wavfile.write(path, rate, np.rint(samples * 32767).astype(np.int16))


def _claim_in_mp4(content: bytes, seconds: int) -> bytes:
    """The file with another duration in the headers of the film, its tracks and their media."""
    claimed = bytearray(content)
    index = content.rindex(b"moov")
    film_ticks = _integer(content, content.index(b"mvhd", index) + 16)
    for box, ticks_at, duration_at in ((b"mvhd", 16, 20), (b"mdhd", 16, 20), (b"tkhd", None, 24)):
        start = content.find(box, index)
        while start >= 0:
            ticks = film_ticks if ticks_at is None else _integer(content, start + ticks_at)
            duration = min(ticks * seconds, 2**32 - 2)  # newer FFmpegs write finer ticks
            struct.pack_into(">I", claimed, start + duration_at, duration)
            start = content.find(box, start + 4)
    return bytes(claimed)


def _integer(content: bytes, start: int) -> int:
    return struct.unpack_from(">I", content, start)[0]


def _claim_in_flv(content: bytes, seconds: int) -> bytes:
    """The file with another duration in its metadata."""
    claimed = bytearray(content)
    struct.pack_into(">d", claimed, content.index(b"duration\0") + 9, seconds)
    return bytes(claimed)


@pytest.fixture(scope="session")
def face_models() -> Path:
    """The folder of the face models, fetched once a machine."""
    return _fetch("face-models")


@pytest.fixture(scope="session")
def all_models() -> Path:
    """The folder of the models of the default features, Whisper's 71 MB too: for slow tests."""
    return _fetch("models")


@pytest.fixture(scope="session")
def config(face_models) -> ExtractConfig:
    """Features that are quick to load, and that `align` compares: log-mel and face-mesh."""
    return ExtractConfig(face_models, audio={"audio": "log-mel"}, video={"video": "face-mesh"})


def _fetch(kind: str) -> Path:
    try:
        fetch_models(kind)
    except UserError as error:
        pytest.skip(f"the {kind} cannot be fetched: {error}")
    return FOLDER.expanduser()


@pytest.fixture(scope="session")
def clip_run(commands, talking, face_models, tmp_path_factory):
    """The folders of the clips, of their features and of a run trained on them."""
    base = tmp_path_factory.mktemp("way")
    clips, features, folder = base / "clips", base / "features", base / "run"
    for actor in range(1, 7):
        source, _ = talking("two.mp4", seconds=1.0, scale=0.9 + 0.02 * actor)
        for emotion in EMOTIONS:
            place = clips / f"Actor_{actor:02d}" / f"01-01-{emotion}-01-01-01-{actor:02d}.mp4"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, place)
    commands.run("mmattn", "extract", clips, "--to", features, *KINDS)
    options = ("--data.roots", features, "--data.cache", base / "cache", *SMALL)
    commands.run("experiments.no_aug", *options, "--out", folder)
    return clips, features, folder
