"""The script of docs/accuracy.md, which makes the video of feature files of stored posteriors."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from mmattn.data.feature_file import read_features

DOCUMENT = Path(__file__).parents[2] / "docs" / "accuracy.md"


def test_stored_posteriors_become_video(tmp_path):
    (script,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (tmp_path / "add_posteriors.py").write_text(script)
    made, stored = (tmp_path / name / "Actor_01" for name in ("FEATURES", "STORED"))
    for folder in (made, stored):
        folder.mkdir(parents=True)
    audio, times = np.ones((50, 384), np.float32), np.arange(50) / 50
    made_by = {of: {"name": of, "version": 1, "settings": {}} for of in ("audio", "video")}
    name = "01-01-05-01-02-01-01.npz"
    np.savez(
        made / f"03{name[2:]}",
        audio_features=audio,
        audio_timestamps=times,
        extractor=json.dumps(made_by),
    )
    posteriors = np.full((15, 7), 1 / 7, np.float16)
    posteriors[3] = 0  # no face
    stamps = np.arange(15, dtype=np.float32) / 15
    np.savez(stored / name, video_features=posteriors, video_timestamps=stamps)
    command = [sys.executable, "add_posteriors.py", "FEATURES", "STORED"]
    subprocess.run(command, cwd=tmp_path, check=True)
    streams, extractor = read_features(made / f"03{name[2:]}")
    video = streams["video"].frames
    assert video.shape == (15, 14)
    assert not video[3].any()
    np.testing.assert_allclose(video[0, :7], 1 / 7, atol=1e-4)
    np.testing.assert_allclose(video[0, 7:], np.log(1 / 7 + 1e-3), atol=1e-3)
    np.testing.assert_array_equal(streams["audio"].frames, audio)
    assert extractor["video"]["name"] == "stored posteriors"
    assert extractor["audio"] == made_by["audio"]
