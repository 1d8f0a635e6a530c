"""Feature files named as RAVDESS and CREMA-D name theirs, the same whenever they are written."""

import json
from pathlib import Path

import numpy as np

EXTRACTOR = {
    "audio": {"name": "log-mel", "version": 1, "settings": {"hop": 0.05}},
    "video": {"name": "face-mesh", "version": 1, "settings": {"rate": 10.0}},
}
CREMA_D = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")


def write_named_clips(folder: Path) -> Path:
    """Write a clip of each emotion of six speakers to `folder`/RAVDESS and to `folder`/CREMA-D.

    1 to 2 s at 20 Hz of 5 audio and 10 Hz of 4 video features; some frames, and all of some clips,
    are without a face.
    """
    for speaker in range(6):
        actor = speaker + 2  # in two of the published folds
        for emotion in range(1, 9):
            # Sound and picture, or sound alone.
            name = f"0{1 + 2 * (actor % 2)}-01-0{emotion}-01-0{1 + emotion % 2}-01-{actor:02d}.npz"
            _write(folder / "RAVDESS" / f"Actor_{actor:02d}" / name, [0, actor, emotion])
        for emotion, code in enumerate(CREMA_D):
            name = f"{1016 + speaker}_IEO_{code}_{('LO', 'XX')[emotion % 2]}.npz"
            _write(folder / "CREMA-D" / name, [1, speaker, emotion])
    return folder


def _write(path: Path, seed: list[int]) -> None:
    rng = np.random.default_rng(seed)
    seconds, late = rng.uniform(1, 2), rng.uniform(0, 0.2)
    audio = np.arange(int(20 * seconds)) / 20
    video = late + np.arange(int(10 * seconds)) / 10
    sound = rng.standard_normal((len(audio), 5)) + 3
    picture = rng.standard_normal((len(video), 4))
    # What tells the emotion, if weakly: a feature of each modality.
    sound[:, seed[2] % 5] += 1
    picture[:, seed[2] % 4] += 1
    first = rng.integers(len(video))
    picture[first : first + rng.integers(4)] = 0
    if rng.random() < 0.05:
        picture[:] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        audio_features=sound.astype(np.float32),
        audio_timestamps=audio,
        video_features=picture.astype(np.float32),
        video_timestamps=video,
        extractor=np.array(json.dumps(EXTRACTOR)),
    )
