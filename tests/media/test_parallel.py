import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmattn.config import ExtractConfig
from mmattn.data.feature_file import read_features
from mmattn.errors import Incomplete, UserError
from mmattn.media import SUFFIXES
from mmattn.media.extract import audio_beside
from mmattn.media.parallel import Job, extract_clips, find_clips, find_jobs, run_jobs


@pytest.fixture
def folder(tmp_path, talking, faulty_clips, lacking_clips) -> Path:
    """Good clips, clips that lack something and bad ones, some of them in a folder."""
    clips = tmp_path / "clips"
    (clips / "inner").mkdir(parents=True)
    shutil.copy(talking("longer.mp4", seconds=2.0)[0], clips / "1001_DFA_ANG_XX.mp4")
    shutil.copy(talking("short.flv", seconds=1.0)[0], clips / "inner" / "two words é.FLV")
    shutil.copy(lacking_clips / "mute.mp4", clips / "mute.mp4")
    for name in ("empty.mp4", "text.mp4", "cut.flv"):
        shutil.copy(faulty_clips / name, clips)
    return clips


@pytest.mark.slow
def test_bad_clips_are_listed_and_the_others_done(folder, config, tmp_path, caplog):
    to = tmp_path / "features"
    caplog.set_level("INFO", "mmattn")
    with pytest.raises(Incomplete, match=r"3 of 6 clips failed .* the same command retries them"):
        extract_clips([folder], to, config, 2)
    assert {str(path.relative_to(to)) for path in to.rglob("*")} == {
        *("1001_DFA_ANG_XX.npz", "inner", "inner/two words é.npz", "mute.npz")
    }
    streams, extractor = read_features(to / "inner/two words é.npz")
    assert set(streams) == set(extractor) == {"audio", "video"}
    said = caplog.text
    for words in ("it has no audio track", "the file is empty", "no audio or video", "cut short"):
        assert words in said
    assert "3 clips of" in said and "MB each" in said
    # One name fits a corpus, two do not.
    assert f"next: mmattn manifest {to} --pattern PATTERN, one that fits" in said


@pytest.mark.slow
def test_what_is_done_stays_and_what_changed_is_done_again(folder, config, tmp_path, caplog):
    to = tmp_path / "features"
    clips = [folder / "1001_DFA_ANG_XX.mp4", folder / "inner"]
    extract_clips(clips, to, config, 1)
    before = {path: path.stat().st_mtime_ns for path in to.rglob("*.npz")}
    assert len(before) == 2
    with caplog.at_level("INFO", "mmattn"):
        extract_clips(clips, to, config, 1)
    assert "2 of 2 clips are already in" in caplog.text
    (to / "two words é.npz").unlink()
    os.utime(folder / "1001_DFA_ANG_XX.mp4")
    extract_clips(clips, to, config, 1)
    after = {path: path.stat().st_mtime_ns for path in to.rglob("*.npz")}
    assert after.keys() == before.keys() and all(after[path] > before[path] for path in before)


def test_features_of_another_kind_are_not_overwritten(folder, config, tmp_path):
    to = tmp_path / "features"
    clip = folder / "1001_DFA_ANG_XX.mp4"
    extract_clips([clip], to, config, 1)
    before = (to / "1001_DFA_ANG_XX.npz").read_bytes()
    other = replace(config, video_rate=10)
    with pytest.raises(UserError, match=r"video rate 15.0 instead of 10\); choose another --to"):
        extract_clips([clip], to, other, 1)
    os.utime(clip)
    with pytest.raises(UserError, match="choose another --to"):
        extract_clips([clip], to, other, 1)
    assert (to / "1001_DFA_ANG_XX.npz").read_bytes() == before
    (to / "1001_DFA_ANG_XX.npz").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"is not a feature file .*; delete it to extract it"):
        extract_clips([clip], to, config, 1)
    assert (to / "1001_DFA_ANG_XX.npz").read_bytes() == b"mine"


def test_the_next_command_fits_names_and_modalities(folder, config, tmp_path, caplog):
    to, named = tmp_path / "features", folder / "1001_DFA_ANG_XX.mp4"
    caplog.set_level("INFO", "mmattn")
    training = f"next: python -m experiments.no_aug --data.roots {to}"
    extract_clips([named], to, replace(config, video={}), 1)
    assert f"{training} --model.modalities audio\n" in caplog.text
    extract_clips([named], to / "both", config, 1)
    assert f"{training}/both\n" in caplog.text
    (table := to / "both" / "manifest.csv").write_text("file,emotion\nother.npz,sad\n")
    caplog.clear()
    extract_clips([named], to / "both", config, 1)
    assert f"{table} stays as it is: training ignores clips without a row" in caplog.text
    assert table.read_text() == "file,emotion\nother.npz,sad\n"


def test_one_modality_is_not_taken_for_both(folder, config, tmp_path):
    clip, to = folder / "1001_DFA_ANG_XX.mp4", tmp_path / "to"
    alone = replace(config, video={})
    extract_clips([clip], to, alone, 1)
    extract_clips([clip], to, alone, 1)  # it is there already
    with pytest.raises(UserError, match="video: none version 1 instead of face-mesh version 2"):
        extract_clips([clip], to, config, 1)
    (to / "1001_DFA_ANG_XX.npz").unlink()
    extract_clips([clip], to, config, 1)
    with pytest.raises(UserError, match="video: face-mesh version 2 instead of none version 1"):
        extract_clips([clip], to, alone, 1)


def test_bad_options_are_named(folder, config, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "a.npz").touch()
    (tmp_path / "clips.csv").write_text("file\na.npz\n")
    for clips, words in (
        ([tmp_path / "none"], "none: expected a clip or a folder of clips, found nothing"),
        ([empty], r"empty: expected clips \(\.mp4, .*\), found none"),
        ([], "CLIP...: expected clips or folders of clips, one or more"),
        ([tmp_path / "a.npz"], r"a.npz: expected a raw clip or a folder, not a \.npz file"),
        ([tmp_path / "clips.csv"], r"clips.csv: expected raw clips, found feature file .*a.npz"),
    ):
        with pytest.raises(UserError, match=words):
            extract_clips(clips, tmp_path / "to", config, 1)
    clips = [folder / "1001_DFA_ANG_XX.mp4", twin := folder / "1001_DFA_ANG_XX.mkv"]
    shutil.copy(*clips)
    assert find_jobs([folder], tmp_path / "to") == find_jobs([*clips[:1], folder], tmp_path / "to")
    with pytest.raises(UserError, match=r"XX.mp4 and .*XX.mkv would both become .*XX.npz"):
        find_jobs(clips, tmp_path / "to")
    twin.unlink()
    with pytest.raises(UserError, match=r"--to .*XX.mp4: expected a folder, it is a file"):
        extract_clips(clips[:1], clips[0], config, 1)
    rate = replace(config, video_rate=0)
    with pytest.raises(UserError, match="--video-rate 0: expected above 0"):
        extract_clips([folder], tmp_path / "to", rate, 1)
    nothing = replace(config, audio={}, video={})
    with pytest.raises(
        UserError, match="--audio none --video none: expected at least one modality"
    ):
        extract_clips([folder], tmp_path / "to", nothing, 1)
    assert not (tmp_path / "to").exists()


def test_of_a_ravdess_take_the_fullest_file_is_taken(ravdess_clips, tmp_path):
    clips = [clip.name for clip, _ in find_clips([ravdess_clips], (".mp4", ".wav"))]
    assert clips == ["01-01-05-01-02-01-12.mp4", "02-01-06-01-02-01-12.mp4"]
    given = ravdess_clips / "03-01-05-01-02-01-12.wav"
    assert find_clips([given], ()) == [(given, Path(given.name))]


def test_hidden_folders_are_not_searched(folder):
    (folder / ".download").mkdir()
    shutil.copy(folder / "mute.mp4", folder / ".download")
    assert len(find_clips([folder], (".mp4",))) == 4


@pytest.mark.slow
def test_audio_that_comes_later_is_taken(ravdess_clips, config, tmp_path):
    clip = tmp_path / "02-01-05-01-02-01-12.mp4"
    shutil.copy(ravdess_clips / clip.name, clip)
    extract_clips([clip], tmp_path / "to", config, 1)
    assert set(read_features(tmp_path / "to" / f"{clip.stem}.npz")[0]) == {"video"}
    shutil.copyfile(ravdess_clips / f"03-{clip.stem[3:]}.wav", tmp_path / f"03-{clip.stem[3:]}.wav")
    extract_clips([clip], tmp_path / "to", config, 1)
    assert set(read_features(tmp_path / "to" / f"{clip.stem}.npz")[0]) == {"audio", "video"}


@pytest.mark.slow
def test_ctrl_c_ends_it_and_leaves_no_process_or_half_file(commands, talking, all_models, tmp_path):
    clips, to = tmp_path / "clips", tmp_path / "to"
    clips.mkdir()
    for number in range(40):
        shutil.copy(talking("two.mp4", seconds=1.0)[0], clips / f"{number:02d}.mp4")
    job = commands.start("mmattn", "extract", clips, "--to", to, "--workers", "2")
    while not list(to.glob("*.npz")):
        assert job.poll() is None
        time.sleep(0.1)
    children = [int(path.name) for path in Path("/proc").glob("[0-9]*") if _parent(path) == job.pid]
    assert children
    job.send_signal(signal.SIGINT)
    words, _ = job.communicate()
    assert job.returncode == 130 and "interrupted" in words and "Traceback" not in words
    for child in children:
        while _parent(Path("/proc") / str(child)) is not None:
            time.sleep(0.1)
    done = {path.name for path in to.iterdir()}
    assert done and all(name.endswith(".npz") and name[0] != "." for name in done)
    assert len(done) < 40


def _parent(process: Path) -> int | None:
    """Of a process that lives."""
    try:
        state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


@pytest.mark.parametrize("command", ["extract", "align"])
def test_without_the_libraries_it_says_what_to_install(command, tmp_path):
    words = [command, str(tmp_path), *(["--to", "x"] if command == "extract" else [])]
    code = f"import sys; sys.modules['av'] = None; sys.argv[1:] = {words}; import mmattn.__main__"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "raw clips need the library av: pip install 'mmattn[media]'" in done.stderr


def die_at_three(job: Job, config: ExtractConfig) -> str:
    if job.clip.name == "3":
        os._exit(1)
    return job.clip.name


@pytest.mark.slow
def test_a_clip_that_kills_its_process_takes_no_other_with_it():
    jobs = [Job(Path(str(number)), Path()) for number in range(12)]
    found = {
        job.clip.name: result for job, result in run_jobs(die_at_three, jobs, ExtractConfig(), 2)
    }
    assert found == {str(number): None if number == 3 else str(number) for number in range(12)}


def fail_beside_a_long_job(job: Job, config: ExtractConfig) -> None:
    if job.clip.name == "long":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # as in a call of C++
        (job.target / "begun").touch()
        try:
            time.sleep(2)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            time.sleep(600)
        finally:
            (job.target / "cleaned up").touch()
    while not (job.target / "begun").exists():
        time.sleep(0.01)
    raise UserError("the disk is full")


@pytest.mark.slow
def test_jobs_that_are_begun_end_with_the_one_that_fails(tmp_path):
    jobs = [Job(Path(name), tmp_path) for name in ("long", "failing")]
    with pytest.raises(UserError, match="the disk is full"):
        list(run_jobs(fail_beside_a_long_job, jobs, ExtractConfig(), 2))
    assert (tmp_path / "cleaned up").exists()
    assert not multiprocessing.active_children()


def test_a_missing_model_is_one_error(folder, tmp_path):
    with pytest.raises(UserError, match="mmattn download models"):
        extract_clips([folder], tmp_path / "to", ExtractConfig(models=tmp_path), 2)


@pytest.mark.slow
def test_the_commands(commands, folder, face_models, tmp_path):
    """As a user types them; `align` on clips and on what was extracted agrees."""
    to = tmp_path / "features"
    kinds = ("--audio", "log-mel", "--video", "face-mesh")
    words = commands.run("mmattn", "extract", folder, "--to", to, *kinds, "--workers", "2", code=1)
    assert "3 clips failed" in words and "incomplete: 3 of 6 clips failed" in words
    words = commands.run(
        "mmattn", "align", to / "1001_DFA_ANG_XX.npz", "--plot", tmp_path / "a.png"
    )
    assert "all clips together" in words and (tmp_path / "a.png").exists()
    words = commands.run("mmattn", "extract", folder, "--to", to, "--audio", "mfcc", code=2)
    assert "log-mel" in words
    words = commands.run("mmattn", "extract", folder, code=2)
    assert "--to" in words


def test_features_are_finite_and_in_order(folder, config, tmp_path):
    extract_clips([folder / "1001_DFA_ANG_XX.mp4"], tmp_path, config, 1)
    streams, _ = read_features(tmp_path / "1001_DFA_ANG_XX.npz")
    assert streams["audio"].frames.shape[1] == 64 and streams["video"].frames.shape[1] == 32
    assert np.diff(streams["video"].times).min() > 1 / 15 - 2e-3


def test_own_names_that_begin_as_those_of_ravdess_takes_are_clips_of_their_own(tmp_path):
    for name in ("01-happy.wav", "02-happy.wav", "03-happy.wav", "01-01-05-01-02-01-99.mp4"):
        (tmp_path / name).touch()
    assert len(find_clips([tmp_path], SUFFIXES)) == 4
    (tmp_path / "03-sad.wav").touch()
    assert audio_beside(tmp_path / "01-sad.mp4") is None


def test_linked_folders_are_searched_and_other_files_are_counted(tmp_path, monkeypatch):
    for path in ("clips/ben/a.MTS", "clips/b.m4a", "disk/c.3gp", "clips/notes.txt", "clips/x"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    messages = []
    monkeypatch.setattr("mmattn.data.corpora.folders.say", messages.append)
    folder = tmp_path / "clips"
    (folder / "anna").symlink_to(tmp_path / "disk", target_is_directory=True)
    (folder / "anna/circle").symlink_to(folder, target_is_directory=True)
    below = {path.as_posix() for _, path in find_clips([folder], SUFFIXES)}
    assert below == {"ben/a.MTS", "b.m4a", "anna/c.3gp"}
    assert messages == [f"{folder}: other files, which are ignored: 1 without suffix, 1 .txt"]


def test_deleted_feature_files_of_a_table_are_made_again(folder, config, tmp_path):
    table, to = folder / "manifest.csv", tmp_path / "features"
    table.write_text("file,speaker,emotion\n1001_DFA_ANG_XX.mp4,1001,anger\n")
    extract_clips([folder], to, config, 1)
    (made := to / "1001_DFA_ANG_XX.npz").unlink()
    extract_clips([folder], to, config, 1)
    assert made.exists()


def test_clips_of_another_table_are_not_mixed_with_those_there(tmp_path, caplog):
    (clips := tmp_path / "clips").mkdir()
    (clips / "a.wav").touch()
    (to := tmp_path / "features").mkdir()
    for table, row in ((clips, "a.wav,two,happy"), (to, "a.npz,one,happy")):
        (table / "manifest.csv").write_text(f"file,speeker,emotion\n{row}\n")
    (to / "a.npz").touch()
    caplog.set_level("INFO", "mmattn")
    with pytest.raises(UserError, match=r"rows differ from .*clips/manifest.csv; choose another"):
        extract_clips([clips / "manifest.csv"], to, ExtractConfig(), 1)
    assert (to / "a.npz").stat().st_size == 0
    assert "in the column speaker, which training needs; the columns with values are file, spe" in (
        caplog.text
    )
