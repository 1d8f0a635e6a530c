"""Predictions for new clips: the training's own numbers, and what is said where some is lacking."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import mmattn
from mmattn.config import ExtractConfig
from mmattn.console import say_table
from mmattn.data.corpus import open_corpus
from mmattn.data.feature_file import read_features
from mmattn.data.stream import Stream, make_stream
from mmattn.errors import UserError
from mmattn.evaluate.predictions import read_predictions
from mmattn.evaluate.views import StreamView
from mmattn.files import read_json
from mmattn.run.folder import read_config
from mmattn.run.predict import attention_lines, bar, bar_width, find_given
from mmattn.run.run import Clip
from mmattn.train.inference import Ensemble

AUDIO = {"name": "log-mel", "version": 1, "settings": {"hop": 0.05}}
VIDEO = {"name": "face-mesh", "version": 1, "settings": {"rate": 15.0}}
EXTRACTOR = {"audio": AUDIO, "video": VIDEO}


def write_features(path: Path, streams: dict[str, Stream], extractor: dict | None = None) -> Path:
    arrays = {} if extractor is None else {"extractor": np.array(json.dumps(extractor))}
    for name, stream in streams.items():
        arrays |= {f"{name}_features": stream.frames, f"{name}_timestamps": stream.times}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def streams_of(corpus, clip: int) -> dict[str, Stream]:
    return {name: clips.clip(clip) for name, clips in corpus.streams.items()}


@pytest.fixture(scope="session")
def clip_files(tiny_run, tmp_path_factory) -> list[Path]:
    """The test clips of the tiny run as feature files, in the order of its predictions.csv."""
    folder = tmp_path_factory.mktemp("clips")
    config = read_config(tiny_run)
    corpus = open_corpus(config.data, config.streams)
    return [
        write_features(folder / f"{name}.npz", streams_of(corpus, corpus.names.index(name)))
        for name in read_predictions(tiny_run / "predictions.csv").clips
    ]


@pytest.fixture(scope="session")
def stored(tiny_run):
    return read_predictions(tiny_run / "predictions.csv")


def draw(actor: int, emotion: int) -> dict[str, Stream]:
    """Streams that begin and end at different times; the audio has a level, as real ones do."""
    rng = np.random.default_rng([actor, emotion])
    audio, video = np.arange(2 + 30 + actor) / 20, 0.1 + np.arange(22 + emotion) / 15
    return {
        "audio": make_stream(3 + rng.normal(size=(len(audio), 5)).astype(np.float32), audio),
        "video": make_stream(rng.normal(size=(len(video), 4)).astype(np.float32), video),
    }


def train_on_files(commands, folder: Path, *options: object) -> Path:
    """A run of one epoch on files that say their extractor."""
    for actor in range(1, 9):
        for emotion in range(1, 9):
            name = f"01-01-0{emotion}-01-01-01-0{actor}.npz"
            write_features(folder / "clips" / name, draw(actor, emotion), EXTRACTOR)
    commands.run(
        "experiments.no_aug",
        *commands.tiny[10:],  # without the options of the built-in corpus
        *("--data.roots", folder / "clips", "--data.cache", folder / "cache"),
        *("--data.labels", "ravdess8", "--train.epochs", 1, "--devices", 1),
        *("--out", folder / "run", *options),
    )
    return folder / "run"


@pytest.fixture(scope="session")
def file_run(commands, tmp_path_factory) -> Path:
    """Cross-attention on what both streams cover, without audio dynamics: all that can differ."""
    return train_on_files(
        commands,
        tmp_path_factory.mktemp("files"),
        *("--model.fusion", "cross", "--model.cross-units", 8, "--data.overlap"),
        *("--data.tile", "audio"),
    )


def assert_as_stored(predictions, stored):
    assert [one.path.stem for one in predictions] == list(stored.clips)
    found = np.stack([one.probabilities for one in predictions])
    np.testing.assert_allclose(found, stored.probabilities, rtol=1e-5, atol=1e-7)


def test_feature_files_get_the_predictions_of_the_training(tiny_run, clip_files, stored):
    predictions, failures = mmattn.load(tiny_run, calibrated=False).predict_all(clip_files)
    assert failures == []
    assert_as_stored(predictions, stored)
    assert [one.predicted for one in predictions] == [
        stored.class_names[row] for row in stored.predicted
    ]
    for one in predictions:
        assert one.missing == one.notes == ()
        for stream in one.streams.values():
            assert stream.attention.sum() == pytest.approx(1, abs=1e-5)
            assert len(stream.times) == len(stream.attention) == len(stream.features)


@pytest.mark.slow
def test_the_data_options_of_the_run_are_those_of_the_prediction(file_run):
    stored = read_predictions(file_run / "predictions.csv")
    paths = [file_run.parent / "clips" / f"{name}.npz" for name in stored.clips]
    predictions, failures = mmattn.load(file_run, calibrated=False).predict_all(paths)
    assert failures == []
    assert_as_stored(predictions, stored)
    audio, video = (predictions[0].streams[name] for name in ("audio", "video"))
    assert audio.times[0] >= 0.1  # cropped to the time of both
    assert audio.attention.sum() + video.attention.sum() == pytest.approx(1, abs=1e-5)


def test_a_clip_alone_gets_the_same_as_among_others(tiny_run, clip_files, stored):
    one = mmattn.load(str(tiny_run), calibrated=False).predict(str(clip_files[3]))
    np.testing.assert_allclose(one.probabilities, stored.probabilities[3], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_folds_and_ensembles_are_averaged(commands, ensemble, clip_files, tmp_path):
    shutil.copytree(ensemble, tmp_path / "run")
    together = read_predictions(tmp_path / "run" / "predictions.csv")
    predictor = mmattn.load(tmp_path / "run", calibrated=False)
    trainings = [network.folder for network in predictor.networks]
    assert trainings == [tmp_path / "run" / f"member{number}" for number in (0, 1)]
    by_name = {path.stem: path for path in clip_files}
    rows = [row for row, name in enumerate(together.clips) if name in by_name]
    paths = [by_name[together.clips[row]] for row in rows]
    predictions, _ = predictor.predict_all(paths)
    found = np.stack([one.probabilities for one in predictions])
    np.testing.assert_allclose(found, together.probabilities[rows], rtol=1e-5, atol=1e-7)
    alone = [mmattn.load(training).predict(paths[0]) for training in trainings]
    np.testing.assert_allclose(
        predictions[0].streams["video"].attention,
        (alone[0].streams["video"].attention + alone[1].streams["video"].attention) / 2,
        rtol=1e-5,
    )
    text = commands.run("mmattn", "predict", tmp_path / "run", paths[0])
    assert "pool of 2 networks (member0, member1), best checkpoint of each" in text
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(UserError, match="is not complete"):
        mmattn.load(tmp_path / "run")


def masked(streams: dict[str, Stream], name: str) -> dict[str, Stream]:
    """The streams with a modality in which nothing is ever seen."""
    return {**streams, name: make_stream(np.zeros_like(streams[name].frames), streams[name].times)}


def test_a_missing_video_is_like_one_without_a_face(tiny_run, clip_files, tmp_path):
    config = read_config(tiny_run)
    corpus = open_corpus(config.data, config.streams)
    streams = streams_of(corpus, corpus.names.index(clip_files[0].stem))
    without = write_features(tmp_path / "audio.npz", {"audio": streams["audio"]})
    faceless = write_features(tmp_path / "faceless.npz", masked(streams, "video"))
    predictor = mmattn.load(tiny_run)
    (first, second, whole), _ = predictor.predict_all([without, faceless, clip_files[0]])
    assert first.missing == second.missing == ("video",)
    assert first.notes == ("no video: predicted from audio only",)
    frames = len(streams["video"].times)
    assert second.notes == (f"no face in any of its {frames} video frames", *first.notes)
    assert list(first.streams) == list(second.streams) == ["audio"]
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    assert not np.allclose(first.probabilities, whole.probabilities, atol=1e-4)


@pytest.mark.slow
def test_a_missing_audio_is_said_and_the_rest_predicted(file_run, tmp_path):
    path = write_features(tmp_path / "a.npz", {"video": draw(1, 1)["video"]}, {"video": VIDEO})
    one = mmattn.load(file_run).predict(path)
    assert one.missing == ("audio",) and list(one.streams) == ["video"]
    assert one.notes == ("no audio: predicted from video only",)
    assert one.probabilities.sum() == pytest.approx(1)
    assert one.streams["video"].times[0] == 0.1  # there is nothing to crop to


@pytest.mark.slow
def test_a_run_of_one_modality_needs_that_one(file_run, tmp_path):
    clips, cache = file_run.parent / "clips", tmp_path / "cache"
    corpus = mmattn.load_corpus(clips, labels="ravdess8", modalities=["audio"], cache=cache)
    config = mmattn.Config(
        model=mmattn.ModelConfig(modalities=("audio",), units={"audio": (8,)}),
        train=mmattn.TrainConfig(epochs=1, batch=8),
        devices=1,
    )
    run = mmattn.fit(corpus, mmattn.split(corpus), config)
    streams = draw(1, 1)
    wide = make_stream(np.ones((20, 9), np.float32), np.arange(20) / 15)
    other = {**EXTRACTOR, "video": {**VIDEO, "version": 2}}
    paths = [
        write_features(tmp_path / "frame.npz", {"video": streams["video"]}, EXTRACTOR),
        write_features(tmp_path / "both.npz", streams, EXTRACTOR),
        write_features(tmp_path / "wide.npz", {**streams, "video": wide}, other),
    ]
    (both, wide), (failure,) = run.predict_all(paths)
    assert failure == (Clip(paths[0]), "it has no audio, which the run needs")
    assert both.missing == () and list(both.streams) == ["audio"]
    np.testing.assert_allclose(wide.probabilities, both.probabilities, rtol=1e-6)


def changed(streams: dict[str, Stream], name: str, **changes) -> dict[str, Stream]:
    return {**streams, name: streams[name]._replace(**changes)}


WHOLE = draw(1, 1)
FASTER = {**AUDIO, "settings": {"hop": 0.01}}
FACELESS = masked({"video": WHOLE["video"]}, "video")
NARROW = changed(WHOLE, "audio", frames=WHOLE["audio"].frames[:, 1:])
LATE = changed(WHOLE, "video", times=WHOLE["video"].times + 1.3)


@pytest.mark.parametrize(
    ("streams", "extractor", "reason"),
    [
        (WHOLE, {**EXTRACTOR, "audio": FASTER}, "was trained on: audio hop 0.01 instead of 0.05"),
        (WHOLE, None, "audio: an unnamed one instead of log-mel version 1"),
        (NARROW, EXTRACTOR, "audio has 4 features per frame, the run was trained on 5"),
        ({}, EXTRACTOR, "no array NAME_features; the file has extractor"),
        (FACELESS, EXTRACTOR, "it has no audio and no video, which the run needs; "),
        (FACELESS, EXTRACTOR, "; no face in any of its 23 video frames"),
        (LATE, EXTRACTOR, "the streams overlap from 1.40 to 1.60 s; expected 5 or more"),
    ],
)
def test_a_bad_clip_has_a_reason_and_stops_no_other(file_run, tmp_path, streams, extractor, reason):
    bad = write_features(tmp_path / "bad.npz", streams, extractor)
    good = file_run.parent / "clips" / "01-01-01-01-01-01-01.npz"
    predictor = mmattn.load(file_run)
    (one,), (failure,) = predictor.predict_all([bad, good])
    assert one.path == good and failure.path == bad
    assert reason in failure.reason
    with pytest.raises(UserError, match=f"^{re.escape(f'{bad}: {failure.reason}')}$"):
        predictor.predict(bad)
    assert str(bad) not in failure.reason


def test_a_clip_that_breaks_the_network_stops_no_other(tiny_run, clip_files, stored, monkeypatch):
    honest = Ensemble.predict

    def predict(networks, corpus):
        probabilities, attention = honest(networks, corpus)
        probabilities[corpus.names.index(str(clip_files[1]))] = np.nan
        return probabilities, attention

    monkeypatch.setattr(Ensemble, "predict", predict)
    predictions, failures = mmattn.load(tiny_run).predict_all(clip_files[:3])
    assert [one.path for one in predictions] == [clip_files[0], clip_files[2]]
    reason = "the prediction is not finite; expected finite numbers"
    assert failures == [(Clip(clip_files[1]), reason)]


def test_raw_clips_need_a_run_that_knows_its_extractor(tiny_run, clip_files, tmp_path):
    raw = tmp_path / "talk.mp4"
    raw.write_bytes(b"")
    (one,), (failure,) = mmattn.load(tiny_run).predict_all([raw, clip_files[0]])
    assert one.path == clip_files[0]
    assert "audio and video features that do not name their extractor" in failure.reason
    assert "expected a feature file (.npz)" in failure.reason


def test_raw_clips_are_extracted_as_the_run_was(file_run, tmp_path, monkeypatch):
    extract = pytest.importorskip("mmattn.media.extract", reason="needs mmattn[media]")
    streams = draw(3, 2)
    asked = []

    def extract_clip(path, config):
        asked.append(config)
        if path.stem == "broken":
            raise extract.BadMedia("no audio or video can be read")
        if path.stem == "silent":
            heard, notes = {"video": streams["video"]}, ("it has no audio track",)
        else:
            heard, notes = streams, ()
        return extract.Extraction(heard, EXTRACTOR, notes, 2.0, {})

    like = ExtractConfig(video_rate=15.0, models=tmp_path)
    monkeypatch.setattr(extract, "extract_clip", extract_clip)
    monkeypatch.setattr(extract, "config_like", lambda extractor, default: (extractor, default))
    paths = [tmp_path / name for name in ("talk.mp4", "silent.mp4", "broken.flv")]
    features = write_features(tmp_path / "talk.npz", streams, EXTRACTOR)
    predictor = mmattn.load(file_run, media=like)
    (talk, silent, same), failures = predictor.predict_all([*paths, features])
    assert asked == 3 * [(EXTRACTOR, like)]
    np.testing.assert_allclose(talk.probabilities, same.probabilities, rtol=1e-6)
    assert silent.notes == ("it has no audio track", "no audio: predicted from video only")
    assert failures == [(Clip(paths[2]), "no audio or video can be read")]


def test_raw_clips_need_libraries_that_are_named(tiny_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for name in ("survey", "decode", "extract"):
        monkeypatch.delitem(sys.modules, f"mmattn.media.{name}", raising=False)
    with pytest.raises(UserError, match=r"raw clips need the library av: .*'mmattn\[media\]'"):
        mmattn.load(tiny_run).predict("talk.mp4")


def test_the_audio_and_the_most_attended_faces_of_a_raw_clip(tmp_path, monkeypatch):
    footage = pytest.importorskip("mmattn.report.footage")
    decode = pytest.importorskip("mmattn.media.decode", reason="needs mmattn[media]")
    from mmattn.media import extract, sound
    from mmattn.media.faces import Face

    # A grey frame every 0.1 s, each brighter; from 1 s on a second, larger face.
    shades = np.arange(20) * 10
    small = Face(np.array([10.0, 10, 30, 30]), np.zeros((6, 2)), 0.9)
    large = Face(np.array([50.0, 10, 100, 60]), np.zeros((6, 2)), 0.9)

    def read_frames(path, rate):
        assert rate == 7.5
        for number, shade in enumerate(shades):
            frame = np.full((80, 120, 3), 255, np.uint8)
            frame[:40, :40] = shade
            yield number / 10, frame

    def detect(frame):
        return [small] if frame[0, 0, 0] < shades[10] else [large, small]

    def face_models(config):
        assert config.models == tmp_path
        return detect, {}, lambda frame, face: None

    monkeypatch.setattr(decode, "read_frames", read_frames)
    monkeypatch.setattr(extract, "read_frames", read_frames)
    monkeypatch.setattr(extract, "_face_models", face_models)
    attention = np.ones(20)
    attention[[3, 15, 16]] = 5, 9, 8
    valid = np.ones(20, bool)
    valid[3] = False
    attention *= valid
    video = StreamView(np.arange(20) / 10, attention, np.zeros((20, 1)), valid)
    config = ExtractConfig(video_rate=7.5, models=tmp_path)
    faces = footage.faces_of(Path("a.mp4"), video, config)
    assert len(faces) == 5 and 1.5 in [face.time for face in faces]
    for face in faces:
        frame = round(10 * face.time)
        assert frame not in (3, 16)
        assert face.attention == pytest.approx(video.ratio[frame])
        middle = np.asarray(Image.open(io.BytesIO(face.jpeg)))[56, 56]
        np.testing.assert_allclose(middle, shades[frame], atol=6)  # of the face that was followed

    tone = np.tile(np.array([1, -1], np.float32), 50)
    for samples, heard in ((0 * tone, False), (tone, True)):
        audio = sound.Audio(samples, 10, 1.0)
        monkeypatch.setattr(sound, "read_audio", lambda path, audio=audio: audio)
        assert (footage.audio_envelope(Path("a.mp4")) is not None) == heard
    assert footage.audio_envelope(Path("a.mp4")).times[0] == pytest.approx(1.05)


def test_what_is_no_run_or_no_checkpoint_or_device(commands, tiny_run, tmp_path):
    assert "--devices 0: expected 1 to" in commands.run(
        *("mmattn", "evaluate", tiny_run, "--devices", 0), code=2
    )
    with pytest.raises(UserError, match="expected a run's folder"):
        mmattn.load(tmp_path)
    shutil.copy(tiny_run / "config.json", tmp_path)
    with pytest.raises(UserError, match=r"expected a best checkpoint, found none; .* --resume"):
        mmattn.load(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes names of UTF-8 alone")
def test_names_that_are_not_utf8(commands, clip_files, tiny_run, tmp_path):
    """As an archive of an old Windows leaves them; written escaped, in JSON as what they are."""
    name, folder = (os.fsdecode(raw) for raw in (b"J\xfcrgen.npz", b"B\xe4nder"))
    shutil.copy(clip_files[0], clip := tmp_path / name)
    page, table = tmp_path / "page.html", tmp_path / "table.csv"
    text = commands.run("mmattn", "predict", tiny_run, clip, "--html", page)
    commands.run("mmattn", "predict", tiny_run, clip, "--csv", table)
    for written in (text, page.read_text("utf-8"), table.read_text("utf-8")):
        assert r"J\udcfcrgen.npz" in written
    found = json.loads(commands.run("mmattn", "predict", tiny_run, clip, "--json"))
    assert Path(found["predictions"][0]["clip"]) == clip
    train_on_files(commands, tmp_path / folder, "--out", run := tmp_path / "run")
    assert r"B\udce4nder" in (run / "train.log").read_text("utf-8")
    assert "UAR" in commands.run("mmattn", "evaluate", run)
    text = commands.run("experiments.no_aug", "--out", tmp_path / folder / "run", code=2)
    assert "expected a name in UTF-8" in text


def test_the_screen_says_it_all_in_a_hundred_columns(commands, tiny_run, clip_files, stored):
    lacking = clip_files[0].with_name("audio.npz")
    with np.load(clip_files[0]) as arrays:
        np.savez(lacking, **{key: arrays[key] for key in arrays if key.startswith("audio")})
    paths = [clip_files[0], lacking, clip_files[0].with_name("lost.npz")]
    text = commands.run("mmattn", "predict", tiny_run, *paths, "--no-calibrated", code=1)
    first, second, _ = re.split(r"\S+/(?:audio|lost)\.npz", text, maxsplit=2)
    assert f"{stored.clips[0]}.npz: {stored.class_names[stored.predicted[0]]}" in first
    for name, probability in zip(stored.class_names, stored.probabilities[0], strict=True):
        assert re.search(rf"^ {name} +{probability:.3f} *{bar(probability)}$", first, re.MULTILINE)
    assert re.search(r"^audio  [▁-█]{40}  0\.0 to \d\.\d s, most at", first, re.MULTILINE)
    assert re.search(r"^video  ", first, re.MULTILINE)
    assert not re.search(r"^video  ", second, re.MULTILINE)
    assert "no video: predicted from audio only" in second
    assert re.search(r"lost\.npz +unreadable: No such file", text)
    assert text.endswith("1 of 3 clips could not be predicted; the table gives the reasons\n")
    folders = str(tiny_run.parent), str(lacking.parent)  # of the tests, and long
    own = [re.sub("|".join(folders), "", line) for line in text.splitlines()]
    assert max(map(len, own)) <= 100


@pytest.mark.slow
def test_json_alone_is_on_the_standard_output(commands, tiny_run, clip_files, stored, tmp_path):
    lost, page = tmp_path / "lost.npz", tmp_path / "page.html"
    options = ("--json", "--html", page, "--no-calibrated")
    done = subprocess.run(
        [sys.executable, "-m", "mmattn", "predict", *(tiny_run, clip_files[0], lost), *options],
        env=commands.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("incomplete: 1 of 2 clips could not be predicted; the JSON")
    found = json.loads(done.stdout)
    (one,) = found["predictions"]
    assert one["clip"] == str(clip_files[0]) and one["missing"] == one["notes"] == []
    assert list(one["probabilities"]) == list(stored.class_names)
    np.testing.assert_allclose(
        list(one["probabilities"].values()), stored.probabilities[0], rtol=1e-5, atol=1e-7
    )
    assert one["predicted"] == max(one["probabilities"], key=one["probabilities"].get)
    for name in ("audio", "video"):
        assert sum(one["attention"][name]["weights"]) == pytest.approx(1, abs=1e-5)
        assert len(one["attention"][name]["weights"]) == len(one["attention"][name]["times"])
    reason = "unreadable: No such file or directory"
    assert found["failures"] == [{"clip": str(lost), "reason": reason}]
    assert page.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [([], "expected one clip or more"), (["a.npz", "--html", "/nowhere/a.html"], "/nowhere")],
)
def test_wrong_options_are_one_clear_message(commands, tiny_run, options, words):
    assert words in commands.run("mmattn", "predict", tiny_run, *options, code=2)


def test_attention_is_drawn_over_common_seconds():
    times = np.arange(80) / 40  # two frames for each of 40 characters
    high = np.where(times >= 1, 2.0, 1.0)
    audio = StreamView(times, high / high.sum(), np.zeros((80, 1)))
    late = np.arange(12) / 12 + 1.0
    valid = late < 1.5
    video = StreamView(late, valid / 6, np.zeros((12, 1)), valid)
    first, second = attention_lines({"audio": audio, "video": video})
    shown = first[7:47]
    assert shown.strip("▄█") == "" and shown.index("█") == 20 and "▄" not in shown[20:]
    assert first.endswith("  0.0 to 2.0 s, most at 1.00 s (1.3 × uniform)")
    shown = second[7:47]
    assert shown[:18].strip() == "" and set(shown[21:29]) == {"█"} and set(shown[32:]) == {"·"}


def test_bars():
    bars = ["", "▏", "██", "██▏", "████"]
    assert [bar(share, 4) for share in (0, 0.03125, 0.5, 0.53125, 1)] == bars


@pytest.mark.parametrize("room", [40, 60, 80, 100])
def test_a_bar_has_a_line_of_its_own(room, monkeypatch):
    said = []
    monkeypatch.setattr("mmattn.console.say", said.append)
    monkeypatch.setattr("mmattn.console.WIDTH", room)
    width = bar_width(["calm", "surprised"], room)
    say_table("title", ("class", "probability", ""), [("surprised", "1.000", bar(1, width))], True)
    assert said[0].endswith(f" surprised  1.000        {'█' * width}\n")
    assert width == min(50, room - 26)


def test_a_folder_a_pattern_and_a_manifest_as_a_table(commands, tiny_run, clip_files, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for path in clip_files:
        shutil.copy(path, folder)
    (folder / "broken.npz").write_bytes(b"no archive")
    pattern = folder / f"{clip_files[1].stem[:-1]}?.npz"
    table = tmp_path / "manifest.csv"
    table.write_text(
        "file,start,end,emotion\n"
        f"{shutil.copy(clip_files[2], tmp_path / 'a.npz').name},,,\n"
        f"a.npz,0.5,1.5,\n"
        "a.npz,0,0.01,\n"
    )
    out = tmp_path / "out.csv"
    text = commands.run("mmattn", "predict", tiny_run, folder, pattern, table, "--csv", out, code=1)
    with open(out) as file:
        rows = list(csv.DictReader(file))
    matches = len(list(folder.glob(pattern.name)))
    assert len(rows) == len(clip_files) + 1 + matches + 3
    failed = [row for row in rows if row["failure"]]
    assert [Path(row["clip"]).name for row in failed] == ["broken.npz", "a.npz"]
    assert "no .npz archive" in failed[0]["failure"]
    assert failed[1]["failure"] == "1 frames from 0 s to 0.01 s, expected 5 or more"
    assert f"2 of {len(rows)} clips could not be predicted" in text
    times = [(row["start"], row["end"]) for row in rows if Path(row["clip"]).name == "a.npz"]
    assert times == [("", ""), ("0.5", "1.5"), ("0.0", "0.01")]
    text = commands.run("mmattn", "predict", tiny_run, table, code=1)
    assert re.search(r"/a\.npz, 0\.5 s to 1\.5 s: \w+\n", text)
    text = commands.run("mmattn", "predict", tiny_run, table, "--json", code=1)
    found = json.loads(text[: text.rindex("}") + 1])
    assert [one.get("start") for one in found["predictions"]] == [None, 0.5]
    assert found["failures"][0]["end"] == 0.01
    run = mmattn.load(tiny_run)
    whole, part = run.predict_all([clip_files[2], Clip(clip_files[2], 0.5, 1.5)]).predictions
    for row, one in zip(
        [row for row in rows if row not in failed][-2:], (whole, part), strict=True
    ):
        assert row["predicted"] == one.predicted
        found = [float(row[name]) for name in run.class_names]
        np.testing.assert_allclose(found, one.probabilities, rtol=1e-5)
    assert part.streams["audio"].times[0] == 0.5 and part.streams["audio"].times[-1] <= 1.5
    assert not np.allclose(whole.probabilities, part.probabilities, rtol=1e-4)
    long = run.predict_all([Clip(clip_files[2], 0.5, 99)]).predictions[0]
    assert part.notes == () and "is to end at 99 s, the last frame is at " in long.notes[0]


def test_feature_files_need_no_libraries_of_media():
    code = (
        "import sys, mmattn.run.predict; sys.exit(bool({'av', 'ai_edge_litert'} & {*sys.modules}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_of_files_with_one_name_a_folder_gives_the_first_kind(tmp_path):
    for name in ("b.wav", "a.wav", "a.mp4", "a.npz"):
        (tmp_path / name).touch()
    assert [clip.path.name for clip in find_given([tmp_path])] == ["a.npz", "b.wav"]


def test_clips_of_any_length_share_compilations(tiny_run, clip_files, tmp_path):
    run = mmattn.load(tiny_run)
    lengths = []

    def listen(event: str, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            lengths[-1] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for frames in range(16, 41, 3):
            streams = {
                "audio": make_stream(np.ones((frames, 8), np.float32), np.arange(frames) / 20),
                "video": make_stream(np.ones((16, 6), np.float32), np.arange(16) / 15),
            }
            lengths.append(0)
            run.predict(write_features(tmp_path / "clip.npz", streams))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    # The ladder is 16, 20, 25, 31, 38, 47; the lengths 16, 19, 22, 25, 28, 31, 34, 37, 40.
    new = [True, True, True, False, True, False, True, False, True]
    assert [count > 0 for count in lengths] == new


def test_the_temperature_of_the_run_is_applied(tiny_run, clip_files, stored):
    temperature = read_json(tiny_run / "summary.json")["temperature"]
    raw = mmattn.load(tiny_run, calibrated=False).predict(clip_files[0])
    np.testing.assert_allclose(raw.probabilities, stored.probabilities[0], rtol=1e-5, atol=1e-7)
    one = mmattn.load(tiny_run).predict(clip_files[0])
    powers = raw.probabilities ** (1 / temperature)
    np.testing.assert_allclose(one.probabilities, powers / powers.sum(), rtol=1e-9)


def test_streams_in_memory_get_what_their_files_get(tiny_run, clip_files):
    run = mmattn.load(tiny_run)
    predictions, _ = run.predict_all(clip_files[:3])
    files = [read_features(path)[0] for path in clip_files[:3]]
    short = {name: Stream(*(array[:4] for array in of)) for name, of in files[0].items()}
    silent = {"video": files[1]["video"]}
    found = run.predict_streams([files[0], short, {}, *files[1:], silent])
    for one, same in zip((found[0], *found[3:5]), predictions, strict=True):
        np.testing.assert_array_equal(one.probabilities, same.probabilities)
    assert [str(one.path) for one in found] == ["0", "1", "2", "3", "4", "5"]
    assert found[1].reason == "its audio has 4 frames; expected 5"
    assert found[2].reason == "it has no audio and no video, which the run needs"
    assert found[5].missing == ("audio",)
    assert str(run.predict_streams([{}], ["two.mp4"])[0].path) == "two.mp4"


def test_streams_in_memory_are_taken_for_the_runs_own(file_run):
    run, path = mmattn.load(file_run), file_run.parent / "clips" / "01-01-01-01-01-01-01.npz"
    (found,) = run.predict_streams([read_features(path)[0]])
    np.testing.assert_array_equal(found.probabilities, run.predict(path).probabilities)
