"""Feature files to a corpus: found, checked together, labelled, in an order of their own."""

import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mmattn.config import DataConfig, SyntheticConfig
from mmattn.data import corpus as corpus_module
from mmattn.data.corpora import find_files
from mmattn.data.corpus import Corpus, crop_and_tile, open_corpus
from mmattn.data.labels import SIX
from mmattn.data.stream import Stream, make_stream, pack_streams
from mmattn.errors import UserError

open_both = partial(open_corpus, modalities=("audio", "video"))


@pytest.fixture
def tables(monkeypatch):
    """The rows of the tables that were shown."""
    rows = []
    monkeypatch.setattr(
        corpus_module, "say_table", lambda title, columns, more, **_: rows.extend(more)
    )
    return rows


@pytest.fixture
def messages(monkeypatch):
    said = []
    monkeypatch.setattr(corpus_module, "say", said.append)
    return said


def test_clips_come_with_speaker_and_label_in_the_order_of_their_names(corpus_folder, options):
    corpus = open_both(options(corpus_folder))
    assert len(corpus) == 32
    assert list(corpus.names) == sorted(corpus.names)
    for index, name in enumerate(corpus.names):
        assert corpus.speakers[index] == f"ravdess-{name[-2:]}"
        assert corpus.labels[index] == int(name[6:8]) - 1
        (path,) = corpus_folder.rglob(f"{name}.npz")
        with np.load(path) as arrays:
            np.testing.assert_array_equal(
                corpus.streams["audio"].clip(index).frames, arrays["audio_features"]
            )
            np.testing.assert_array_equal(
                corpus.streams["video"].clip(index).frames, arrays["video_features"]
            )
            np.testing.assert_array_equal(
                corpus.streams["video"].clip_times(index), arrays["video_timestamps"]
            )
    assert corpus.description == f"32 RAVDESS clips of 4 speakers from {corpus_folder}"


def test_nested_flat_and_split_over_roots_is_the_same_corpus(corpus_folder, options, tmp_path):
    nested = open_both(options(corpus_folder))
    parts = [tmp_path / "z", tmp_path / "a"]
    for number, path in enumerate(sorted(corpus_folder.rglob("*.npz"), reverse=True)):
        parts[number % 2].mkdir(exist_ok=True)
        shutil.copy(path, parts[number % 2])
    flat = open_both(options(*parts))
    assert flat.names == nested.names
    assert (flat.labels == nested.labels).all()
    for index in range(len(nested)):
        np.testing.assert_array_equal(
            flat.streams["audio"].clip(index).frames, nested.streams["audio"].clip(index).frames
        )


def test_the_order_of_the_file_system_does_not_matter(corpus_folder, monkeypatch):
    walk = os.walk

    def backwards(*arguments, **options):
        for folder, below, names in walk(*arguments, **options):
            below.sort(reverse=True)
            yield folder, below, sorted(names, reverse=True)

    files = find_files([corpus_folder])
    monkeypatch.setattr(os, "walk", backwards)
    assert find_files([corpus_folder]) == files


def test_a_root_inside_another_and_links_in_circles_count_once(corpus_folder):
    (corpus_folder / "Actor_01" / "up").symlink_to(corpus_folder)
    roots = [corpus_folder / "Actor_01", corpus_folder, corpus_folder / "Actor_02" / ".."]
    assert len(find_files(roots)) == 32


def test_six_leaves_surprised_out_and_says_so(corpus_folder, options, messages):
    corpus = open_both(options(corpus_folder, labels=("six",)))
    assert len(corpus) == 28
    assert not any(name[6:8] == "08" for name in corpus.names)
    assert messages == [f"4 clips left out: surprised is not among the labels {', '.join(SIX)}"]
    calm = [index for index, name in enumerate(corpus.names) if name[6:8] == "02"]
    assert {corpus.class_names[label] for label in corpus.labels[calm]} == {"neutral"}


def test_bad_clips_are_listed_and_counted(corpus_folder, options, tables, write_clip):
    broken = corpus_folder / "Actor_01" / "03-01-01-01-01-01-01.npz"
    broken.write_bytes(b"broken")
    odd = write_clip(corpus_folder / "clip.npz")
    with pytest.raises(
        UserError,
        match=r"2 bad clips of 33 \(.*01\.npz: no .npz archive.*\), 1 are allowed; --data.max-bad",
    ):
        open_both(options(corpus_folder, max_bad=1))
    assert [path for path, _ in tables] == [str(broken), str(odd)]
    assert "neither RAVDESS" in tables[1][1]
    assert len(open_both(options(corpus_folder, max_bad=2))) == 31


def test_a_corpus_of_four_emotions_has_four_classes(corpus_folder, options, messages):
    for path in corpus_folder.rglob("*.npz"):
        if path.stem[6:8] not in ("01", "03", "04", "05"):
            path.unlink()
    corpus = open_both(options(corpus_folder, labels=()))
    assert corpus.class_names == ("anger", "happy", "neutral", "sad")
    assert messages[0].startswith("no clips of disgust, fear: the classes are anger, ")
    assert len(open_both(options(corpus_folder, labels=("six",))).class_names) == 6
    for path in corpus_folder.rglob("*.npz"):
        if path.stem[6:8] != "05":
            path.unlink()
    with pytest.raises(UserError, match="all clips are of one class, anger; expected two classes"):
        open_both(options(corpus_folder, labels=()))


def test_the_commonest_width_is_right(corpus_folder, options, tables, write_clip):
    first = sorted(corpus_folder.rglob("*.npz"))[0]
    write_clip(first, audio_features=np.ones((50, 9), np.float32))
    corpus = open_both(options(corpus_folder, max_bad=1))
    assert tables == [(str(first), "audio_features are 9 wide, 4 in 31 of 32 files")]
    assert (len(corpus), corpus.widths) == (31, {"audio": 4, "video": 3})
    for index, name in enumerate(corpus.names):
        with np.load(next(corpus_folder.rglob(f"{name}.npz"))) as arrays:
            np.testing.assert_array_equal(
                corpus.streams["video"].clip(index).frames, arrays["video_features"]
            )


def test_speakers_of_one_name_in_two_corpora_are_mentioned(
    options, tmp_path, messages, write_corpus
):
    folder = write_corpus(tmp_path / "clips", actors=3)
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.npz"))
    rows = [
        f"{path},{'anna' if n % 2 else n},happy,{'ab'[n // 12]}" for n, path in enumerate(paths)
    ]
    table = folder / "manifest.csv"
    table.write_text("\n".join(["file,speaker,emotion,corpus", *rows[:12]]))
    open_both(options(folder))
    assert not messages
    table.write_text("\n".join(["file,speaker,emotion,corpus", *rows]))
    assert {"a-anna", "b-anna"} < {*open_both(options(folder)).speakers}
    (said,) = messages
    assert "same name (anna) and count as different people" in said and "column corpus" in said


def test_the_same_name_in_two_roots_is_bad(corpus_folder, options, tmp_path, tables, write_corpus):
    other = write_corpus(tmp_path / "other", actors=1, seed=5)
    with pytest.raises(UserError, match="8 bad clips of 40"):
        open_both(options(corpus_folder, other))
    path, reason = tables[0]
    first = f"{corpus_folder}/Actor_01/{Path(path).name}"
    assert reason.startswith(f"has the same name as {first}: give each clip once, and other clips")
    assert path.startswith(str(other))


def test_missing_and_empty_roots(corpus_folder, options, tmp_path):
    with pytest.raises(UserError, match=r"nowhere: expected a folder of feature files"):
        open_both(options(corpus_folder, tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"/empty: expected clips \(\.npz\), found none"):
        open_both(options(corpus_folder, tmp_path / "empty"))


def test_no_clips_left(options, tmp_path, write_clip):
    write_clip(tmp_path / "clips" / "03-01-08-01-01-01-01.npz")
    with pytest.raises(UserError, match="no clips are left of 1 for the labels "):
        open_both(options(tmp_path / "clips", labels=("six",)))
    (tmp_path / "clips" / "03-01-08-01-01-01-01.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"1 bad clip of 1 \(.*\), none is left"):
        open_both(options(tmp_path / "clips", max_bad=1))


@pytest.mark.parametrize("rate", [0, -1.0, float("nan"), float("inf")])
def test_rates_must_be_above_zero(corpus_folder, options, rate):
    with pytest.raises(UserError, match=rf"--data.rates video={rate}: expected above 0"):
        open_both(options(corpus_folder, rates={"video": rate}))


def test_the_real_subset(real_features, options, messages):
    corpus = open_both(options(real_features))
    assert (len(corpus), len(set(corpus.speakers))) == (720, 12)
    assert np.bincount(corpus.labels).tolist() == [48] + 7 * [96]
    assert corpus.widths == {"audio": 64, "video": 7}
    assert (corpus.streams["audio"].lengths.min(), corpus.streams["video"].lengths.min()) > (50, 20)
    six = open_both(options(real_features, labels=("six",)))
    assert len(six) == 624
    assert messages == [f"96 clips left out: surprised is not among the labels {', '.join(SIX)}"]


def test_overlap_keeps_what_both_streams_cover(write_clip, options, tmp_path):
    root = tmp_path / "clips"
    path = root / "03-01-01-01-01-01-01.npz"
    write_clip(path, seconds=2, video_timestamps=lambda times: times + 0.51)
    whole = open_both(options(root))
    cropped = open_both(options(root, overlap=True))
    times = whole.streams["audio"].clip_times(0)
    kept = (times >= 0.51) & (times <= whole.streams["video"].clip_times(0)[-1])
    np.testing.assert_array_equal(cropped.streams["audio"].clip_times(0), times[kept])
    np.testing.assert_array_equal(
        cropped.streams["audio"].clip(0).frames, whole.streams["audio"].clip(0).frames[kept]
    )
    last = np.searchsorted(whole.streams["video"].clip_times(0), times[-1], "right")
    np.testing.assert_array_equal(
        cropped.streams["video"].clip(0).frames, whole.streams["video"].clip(0).frames[:last]
    )


def test_too_little_overlap_names_the_clip(write_clip, options, tmp_path):
    root = tmp_path / "clips"
    path = root / "03-01-01-01-01-01-01.npz"
    write_clip(path, seconds=2, video_timestamps=lambda times: times + 1.9)
    with pytest.raises(UserError, match=r"03-01-01-01-01-01-01.*expected 5 or more video frames"):
        open_both(options(root, overlap=True))


def test_tiled_audio_is_each_clip_s_mean_at_the_same_times(corpus_folder, options):
    plain = open_both(options(corpus_folder))
    tiled = open_both(options(corpus_folder, tile=("audio",)))
    for clip in range(len(plain)):
        audio = plain.streams["audio"].clip(clip).frames
        expected = np.broadcast_to(np.float64(audio).mean(0), audio.shape)
        np.testing.assert_allclose(tiled.streams["audio"].clip(clip).frames, expected, atol=1e-6)
        assert not np.ptp(tiled.streams["audio"].clip(clip).frames, axis=0).any()
        np.testing.assert_array_equal(
            tiled.streams["audio"].clip_times(clip), plain.streams["audio"].clip_times(clip)
        )
        np.testing.assert_array_equal(
            tiled.streams["video"].clip(clip).frames, plain.streams["video"].clip(clip).frames
        )
    assert tiled.streams["audio"].clip(0).frames.dtype == np.float32
    assert "without dynamics" in tiled.description and tiled.names == plain.names


def test_tiled_audio_is_the_mean_of_what_the_crop_has_left(write_clip, options, tmp_path):
    path = tmp_path / "clips" / "03-01-01-01-01-01-01.npz"
    late = {"video_timestamps": 0.5 + np.arange(15) / 15}
    write_clip(path, seconds=1.0, **late)
    data = options(path.parent, overlap=True)
    cropped, tiled = open_both(data), open_both(replace(data, tile=("audio",)))
    assert len(cropped.streams["audio"].clip(0).frames) == 25
    np.testing.assert_allclose(
        tiled.streams["audio"].clip(0).frames[7],
        cropped.streams["audio"].clip(0).frames.mean(0),
        atol=1e-6,
    )


def made_by(hop: float, version: int = 2) -> np.ndarray:
    return np.array(
        json.dumps(
            {
                "audio": {"name": "log-mel", "version": 1, "settings": {"hop": hop}},
                "video": {"name": "face-mesh", "version": version, "settings": {}},
            }
        )
    )


def test_the_extractor_of_all_clips_is_the_corpus_s(corpus_folder, options, write_clip):
    assert open_both(options(corpus_folder)).extractor == {}
    for path in corpus_folder.rglob("*.npz"):
        write_clip(path, extractor=made_by(0.02))
    corpus = open_both(options(corpus_folder, overlap=True, tile=("audio",)))
    assert corpus.extractor == json.loads(made_by(0.02).item())


def test_drawn_clips_have_no_extractor():
    synthetic = SyntheticConfig(clips=12, speakers=2)
    assert open_both(DataConfig(synthetic=synthetic)).extractor == {}


def test_clips_of_several_extractors(corpus_folder, options, write_clip):
    """Two clips are named, and where they differ."""
    paths = sorted(corpus_folder.rglob("*.npz"), key=lambda path: path.name)
    for path in paths[:3]:
        write_clip(path, extractor=made_by(0.02))
    write_clip(paths[2], extractor=made_by(0.01, version=1))
    with pytest.raises(UserError) as caught:
        open_both(options(corpus_folder))
    assert str(caught.value) == (
        f"{paths[2]}: its features are from another extractor than those of {paths[0]}: audio "
        "hop 0.01 instead of 0.02, video: face-mesh version 1 instead of face-mesh version 2. "
        "Extract the clips of these files (1) again: mmattn extract CLIPS --to FOLDER; or use "
        "other --data.roots"
    )
    paths[2].unlink()
    with pytest.raises(UserError, match=r"an unnamed one instead of log-mel"):
        open_both(options(corpus_folder))


def test_clips_that_are_left_out_may_be_of_another_extractor(corpus_folder, options, write_clip):
    surprised = sorted(corpus_folder.rglob("03-01-08-*.npz"))
    for path in surprised:
        write_clip(path, extractor=made_by(0.02))
    corpus = open_both(options(corpus_folder, labels=("six",)))
    assert len(corpus) == 28 and corpus.extractor == {}


def lacking_one_modality() -> Corpus:
    """Three clips: all of it, without audio, without video. The video begins and ends later."""
    audio = make_stream(np.arange(40, dtype=np.float32).reshape(20, 2), np.arange(20) / 10)
    video = make_stream(np.ones((20, 3), np.float32), 0.5 + np.arange(20) / 10)
    silent, blind = (Stream(*(array[:0] for array in stream)) for stream in (audio, video))
    streams = {
        "audio": pack_streams([audio, silent, audio]),
        "video": pack_streams([video, video, blind], zero_is_missing=True),
    }
    return Corpus("test", tuple("abc"), np.array(3 * ["s"]), np.zeros(3, int), ("one",), streams)


def test_a_clip_that_lacks_a_modality_is_not_cropped():
    cropped = crop_and_tile(lacking_one_modality(), DataConfig(overlap=True))
    assert cropped.streams["audio"].lengths.tolist() == [15, 0, 20]
    assert cropped.streams["video"].lengths.tolist() == [15, 20, 0]


def test_a_clip_without_audio_has_none_that_is_tiled():
    corpus = lacking_one_modality()
    tiled = crop_and_tile(corpus, DataConfig(tile=("audio",)))
    assert tiled.streams["audio"].lengths.tolist() == [20, 0, 20]
    np.testing.assert_array_equal(tiled.streams["audio"].frames, 40 * [[19, 20]])
    assert tiled.streams["audio"].clip(0).frames.dtype == np.float32


def test_of_one_modality_no_other_is_needed(corpus_folder, options, tables, write_clip):
    """Nor looked at: it may be missing, broken, at other times or of other widths."""
    expected = open_corpus(options(corpus_folder), ("audio",))
    first, second, third, fourth = sorted(corpus_folder.rglob("*.npz"))[:4]
    for path, change in (
        (first, {"video_features": None, "video_timestamps": None}),
        (second, {"video_features": np.full((15, 3), np.nan)}),
        (third, {"video_timestamps": 100 + np.arange(15) / 15}),
        (fourth, {"video_features": np.ones((15, 9))}),
    ):
        with np.load(path) as arrays:
            audio = {key: arrays[key] for key in arrays.files if key.startswith("audio")}
        write_clip(path, **audio | change)
    found = open_corpus(options(corpus_folder), ("audio",))
    assert found.names == expected.names and [*found.streams] == ["audio"]
    for clip in range(32):
        for array, other in zip(
            found.streams["audio"].clip(clip), expected.streams["audio"].clip(clip), strict=True
        ):
            np.testing.assert_array_equal(array, other)
    with pytest.raises(UserError, match="4 bad clips of 32"):
        open_both(options(corpus_folder))
    assert [path for path, _ in tables] == [str(path) for path in (first, second, third, fourth)]
    for (_, reason), words in zip(
        tables,
        (
            "video_features is missing; the file has audio_features",
            "video_features has 45 values that are not finite",
            "do not overlap in time",
            "video_features are 9 wide, 3 in 29 of 30 files",
        ),
        strict=True,
    ):
        assert words in reason


def test_segments_of_files(options, tmp_path, tables, write_clip):
    """Frames from start to end, both included; a bound may be left open."""
    root = tmp_path / "clips"
    write_clip(root / "a.npz", seconds=2)
    rows = ["file,start,end,speaker,emotion", "a.npz,0.5,1.1,s,x", "a.npz,1.5,,s,y"]
    (root / "manifest.csv").write_text("\n".join([*rows, "a.npz,0.9,1,s,x", ""]))
    corpus = open_both(options(root, labels=(), max_bad=1))
    assert corpus.names == ("a@0.5-1.1", "a@1.5-") and corpus.lines.tolist() == [2, 3]
    with np.load(root / "a.npz") as arrays:
        for clip, kept in enumerate((slice(25, 56), slice(75, 100))):
            stream = corpus.streams["audio"].clip(clip)
            np.testing.assert_array_equal(stream.frames, arrays["audio_features"][kept])
            np.testing.assert_array_equal(stream.times, arrays["audio_timestamps"][kept])
    reason = "line 4: 2 frames of video from 0.9 to 1.0 s, expected 5 or more"
    assert tables == [(str(root / "a.npz"), reason)]


def test_a_raw_clip_is_refused_only_where_its_features_are_needed(options, tmp_path, write_clip):
    root = tmp_path / "clips"
    rows = ["file.audio,file.video,speaker,emotion"]
    for number in range(4):
        write_clip(root / f"{number}.npz", video_features=None)
        rows.append(
            f"{number}.npz,{number}.{'mp4' if number else 'npz'},s{number},{'xy'[number % 2]}"
        )
        (root / f"{number}.mp4").touch()
    (root / "manifest.csv").write_text("\n".join([*rows, ""]))
    assert len(open_corpus(options(root, labels=()), ("audio",))) == 4
    with pytest.raises(UserError) as error:
        open_both(options(root, labels=()))
    assert f"{root}/manifest.csv, line 3, column file.video: expected a feature" in str(error.value)
    assert f"found {root}/1.mp4; `mmattn extract {root}/manifest.csv --to" in str(error.value)


def test_a_modality_that_no_file_has(corpus_folder, options, tables):
    with pytest.raises(UserError, match="32 bad clips of 32"):
        open_corpus(options(corpus_folder), ("text", "audio"))
    has = "audio_features, video_features, which is enough for --model.modalities audio video"
    expected = f"text_features is missing; the file has {has}"
    assert {reason for _, reason in tables} == {expected}


def test_features_of_several_files_are_joined_by_row(options, tmp_path, tables, write_clip):
    """Cells may be empty where the modality is not asked for."""
    root = tmp_path / "clips"
    rows = ["file.audio,file.video,speaker,emotion"]
    for number in range(4):
        audio = write_clip(root / f"a{number}.npz", seed=number, video_features=None)
        video = write_clip(root / f"v{number}.npz", seed=9 + number, audio_features=None)
        rows.append(f"{audio.name},{video.name if number else ''},s{number},{'xy'[number % 2]}")
    (root / "manifest.csv").write_text("\n".join([*rows, ""]))
    data = options(root, labels=())
    audio = open_corpus(data, ("audio",))
    assert len(audio) == 4 and audio.class_names == ("x", "y")
    with pytest.raises(UserError, match="1 bad clip of 4"):
        open_corpus(data, ("video", "audio"))
    nothing = "line 2, column file.{}: expected a file, found nothing"
    assert tables.pop() == (str(root / "a0.npz"), nothing.format("video"))
    both = open_corpus(replace(data, max_bad=1), ("video", "audio"))
    assert both.names == ("a1", "a2", "a3") and [*both.streams] == ["video", "audio"]
    for clip, name in enumerate(both.names):
        for modality, file in (("audio", name), ("video", f"v{name[1]}")):
            with np.load(root / f"{file}.npz") as arrays:
                frames = both.streams[modality].clip(clip).frames
                np.testing.assert_array_equal(frames, arrays[f"{modality}_features"])
    for modalities in (("video",), ("text",)):
        tables.clear()
        with pytest.raises(UserError, match=r"bad clips? of 4"):
            open_corpus(data, modalities)
        assert tables[0] == (str(root / "a0.npz"), nothing.format(modalities[0]))
