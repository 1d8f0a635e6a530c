"""The packed cache: found again without reading, never half-written, safe among processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks.machine import bytes_from_disk, forget
from mmattn.data import store
from mmattn.data.corpora import find_files
from mmattn.data.corpus import Corpus, open_corpus
from mmattn.data.store import open_pack
from mmattn.errors import UserError

open_both = partial(open_corpus, modalities=("audio", "video"))


def packs(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if len(path.name) == 64]


def builds(folder: Path) -> list[Path]:
    return list(folder.glob(".build*"))


def content(corpus: Corpus) -> list:
    return [
        (name, *(array.tobytes() for one in corpus.streams.values() for array in one.clip(i)))
        for i, name in enumerate(corpus.names)
    ]


def overwrite_unseen(path: Path) -> None:
    """Garbage in the file, with the same size and time of change."""
    status = path.stat()
    path.write_bytes(b"\0" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_the_second_start_reads_no_feature_file(corpus_folder, options):
    first = content(open_both(options(corpus_folder)))
    for path in corpus_folder.rglob("*.npz"):
        overwrite_unseen(path)
    assert content(open_both(options(corpus_folder))) == first


def test_extractors_are_kept_once_each(corpus_folder, options, tmp_path, write_clip):
    records = {"audio": {"name": "log-mel", "version": 1, "settings": {"hop": 0.02}}}
    files = find_files([corpus_folder])
    for seed, file in enumerate(files[::2]):
        write_clip(Path(file), seed=seed, extractor=np.array(json.dumps(records)))
    Path(files[1]).write_bytes(b"broken")
    for _ in range(2):  # built, then found
        pack = open_pack(files, tmp_path / "cache", {})
        assert pack.extractors == 16 * [records, {}]
        assert len(set(map(id, pack.extractors))) == 2
    (folder,) = packs(tmp_path / "cache")
    assert (folder / "index.json").read_text().count("log-mel") == 1


def test_frames_are_mapped_and_cannot_be_written(corpus_folder, options):
    corpus = open_both(options(corpus_folder))
    for stream in corpus.streams.values():
        for array in (stream.frames, stream.times):
            assert type(array) is np.ndarray and isinstance(array.base, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            stream.clip(0).frames[:] = 0


def test_a_clip_is_read_ahead(corpus_folder, options, write_clip):
    """All of it and little else, without the need to touch it; seen where there is a disk."""
    wide = np.random.default_rng(0).standard_normal((60, 8192)).astype(np.float32)  # 2 MB
    for seed, path in enumerate(corpus_folder.rglob("*.npz")):
        write_clip(path, seed=seed, video_features=wide, video_timestamps=np.arange(60) / 20)
    open_both(options(corpus_folder))
    (pack,) = packs(options(corpus_folder).cache)
    forget(pack.iterdir())
    video = open_both(options(corpus_folder)).streams["video"]
    before = bytes_from_disk()
    assert video.clip(len(video) - 1).frames.any()
    if bytes_from_disk() == before:
        pytest.skip("the temporary folder is in memory")
    before = bytes_from_disk()
    video.read_ahead(7)
    read = bytes_from_disk() - before
    assert wide.nbytes <= read < 1.1 * wide.nbytes
    assert (video.clip(7).frames == wide).all()
    assert bytes_from_disk() - before < 1.1 * wide.nbytes


def test_touched_and_moved_files_find_the_same_pack(corpus_folder, options, tmp_path):
    first = content(open_both(options(corpus_folder)))
    (pack,) = packs(tmp_path / "cache")
    born = (pack / "index.json").stat().st_ino
    for path in corpus_folder.rglob("*.npz"):
        os.utime(path)
    assert content(open_both(options(corpus_folder))) == first
    corpus_folder.rename(tmp_path / "elsewhere")
    assert content(open_both(options(tmp_path / "elsewhere"))) == first
    assert packs(tmp_path / "cache") == [pack]
    assert (pack / "index.json").stat().st_ino == born


def test_other_names_labels_and_tables_pack_nothing_again(corpus_folder, options, tmp_path):
    first = open_both(options(corpus_folder))
    (pack,) = packs(tmp_path / "cache")
    born = {path: path.stat().st_ino for path in pack.iterdir()}

    def same_pack() -> bool:
        kept = packs(tmp_path / "cache") == [pack] and builds(tmp_path / "cache") == []
        return kept and {path: path.stat().st_ino for path in pack.iterdir()} == born

    assert len(open_both(options(corpus_folder, labels=("six",)))) == 28
    paths = sorted(corpus_folder.rglob("*.npz"), key=lambda path: path.name)
    for number, path in enumerate(paths):
        path.rename(corpus_folder / f"clip{len(paths) - number}.npz")
    for emotions in (("bored", "proud"), ("proud", "bored", "amused")):
        rows = [f"clip{n}.npz,{n % 4},{emotions[n % len(emotions)]}" for n in range(1, 33)]
        table = corpus_folder / "manifest.csv"
        table.write_text("\n".join(["file,speaker,emotion", *rows, ""]))
        corpus = open_both(options(corpus_folder, labels=()))
        assert corpus.class_names == tuple(sorted(emotions)) and len(corpus) == 32
        for clip, name in enumerate(corpus.names):
            before = first.streams["video"].clip(32 - int(name.removeprefix("clip")))
            for array, expected in zip(corpus.streams["video"].clip(clip), before, strict=True):
                np.testing.assert_array_equal(array, expected)
        assert same_pack()


def test_files_of_equal_content_are_packed_once(write_clip, tmp_path):
    files = [str(write_clip(tmp_path / f"{name}.npz", seed=name in "bd")) for name in "abcd"]
    for _ in range(2):  # built, then found
        pack = open_pack(files, tmp_path / "cache", {})
        assert pack.rows.tolist() == [0, 1, 0, 1]
        audio = pack.streams["audio"]
        assert len(audio.times) == 2 * 50
        for one, other in ((0, 2), (1, 3)):
            np.testing.assert_array_equal(audio.clip(one).frames, audio.clip(other).frames)
        assert not np.array_equal(audio.clip(0).frames, audio.clip(1).frames)
    one_of_each = open_pack(files[:2], tmp_path / "cache", {})
    assert one_of_each.rows.tolist() == [0, 1] and len(packs(tmp_path / "cache")) == 1


def test_a_pack_serves_files_in_any_order_and_with_any_that_cannot_be_read(write_clip, tmp_path):
    """Also where another has built it meanwhile, or built it anew after damage."""
    files = [str(write_clip(tmp_path / f"{name}.npz", seed=ord(name))) for name in "abc"]
    gone = [str(tmp_path / name) for name in ("0.npz", "z.npz")]
    for name in gone:
        os.symlink(tmp_path / "nowhere", name)

    def lengths_and_first(names: list[str]) -> list:
        audio = open_pack(names, tmp_path / "cache", {}).streams["audio"]
        return [audio.clip(row).frames[:1].tolist() for row in range(len(names))]

    a, b, c = lengths_and_first(files)
    assert lengths_and_first(files[::-1]) == [c, b, a]
    assert lengths_and_first([gone[0], *files]) == [[], a, b, c]
    assert lengths_and_first([*files[::-1], gone[1]]) == [c, b, a, []]
    for pack in packs(tmp_path / "cache"):
        os.unlink(pack / "audio-4.places")
    assert lengths_and_first(files[::-1]) == [c, b, a]
    assert lengths_and_first(files) == [a, b, c]


def test_each_modality_is_packed_as_far_as_it_is_there(clip_arrays, write_clip, tmp_path):
    """Whichever modalities a file has, and whatever is wrong with one of them."""
    text = {"text_features": np.ones((6, 5)), "text_timestamps": np.arange(6) / 6}
    files = [
        write_clip(tmp_path / "all.npz", seed=1, **text),
        write_clip(tmp_path / "audio.npz", seed=2, video_features=None),
        write_clip(tmp_path / "bad.npz", seed=3, **text, video_features=np.full((15, 3), np.nan)),
        write_clip(tmp_path / "wide.npz", seed=4, **text | {"text_features": np.ones((6, 9))}),
        tmp_path / "gone.npz",
    ]
    files[-1].write_bytes(b"nothing")
    pack = open_pack([*map(str, files)], tmp_path / "cache", {})
    assert {name: of.lengths.tolist() for name, of in pack.streams.items()} == {
        "audio": [50, 50, 50, 50, 0],
        "text": [6, 0, 6, 0, 0],
        "video": [15, 0, 0, 15, 0],
    }
    assert {name: of.width for name, of in pack.streams.items()} == {
        **{"audio": 4, "text": 5, "video": 3}
    }
    assert pack.reasons[:2] == [{}, {}]
    assert "45 values that are not finite" in pack.reasons[2].pop("video")
    assert pack.reasons[3].pop("text") == "text_features are 9 wide, 5 in 2 of 3 files"
    assert "no .npz archive" in pack.reasons[4].pop("")
    assert not any(pack.reasons)
    np.testing.assert_array_equal(pack.spans["text"][[0, 2]], 2 * [[0, 5 / 6]])
    (folder,) = packs(tmp_path / "cache")
    kept = ("audio-4", "text-5", "video-3")
    raw = {f"{name}.{what}" for name in kept for what in ("frames", "times", "places")}
    assert {path.name for path in folder.iterdir()} == raw | {"index.json"}
    for row, seed in enumerate((1, 2, 3, 4)):
        expected = clip_arrays(seed=seed)["audio_features"]
        np.testing.assert_array_equal(pack.streams["audio"].clip(row).frames, expected)


def test_altered_content_and_other_rates_make_another_pack(
    corpus_folder, options, tmp_path, write_clip
):
    first = content(open_both(options(corpus_folder)))
    path = next(corpus_folder.rglob("03-01-01-*.npz"))
    write_clip(path, seed=999)
    altered = content(open_both(options(corpus_folder)))
    assert altered != first
    assert len(packs(tmp_path / "cache")) == 2
    write_clip(path, audio_timestamps=None)
    for rate in (50, 49):
        corpus = open_both(options(corpus_folder, rates={"audio": rate}))
        clip = corpus.names.index(path.stem)
        assert corpus.streams["audio"].clip_times(clip)[1] == 1 / rate


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4)


@pytest.mark.parametrize("damage", [cut_short, os.unlink])
@pytest.mark.parametrize(
    "name",
    [
        *(
            f"{stream}.{what}"
            for stream in ("audio-4", "video-3")
            for what in ("frames", "times", "places")
        ),
        "index.json",
    ],
)
def test_a_damaged_pack_is_built_again(corpus_folder, options, tmp_path, name, damage):
    first = content(open_both(options(corpus_folder)))
    (pack,) = packs(tmp_path / "cache")
    damage(pack / name)
    assert content(open_both(options(corpus_folder))) == first
    assert packs(tmp_path / "cache") == [pack]
    assert content(open_both(options(corpus_folder))) == first


def test_bad_clips_are_remembered(corpus_folder, options):
    bad = next(corpus_folder.rglob("*.npz"))
    bad.write_bytes(b"broken")
    first = open_both(options(corpus_folder, max_bad=1))
    assert bad.stem not in first.names
    with pytest.raises(UserError, match="1 bad clip of 32"):
        open_both(options(corpus_folder))


def test_an_unreadable_file_is_tried_again(corpus_folder, options, write_clip):
    lost = corpus_folder / "1001_DFA_ANG_XX.npz"
    lost.symlink_to(corpus_folder / "target")
    assert len(open_both(options(corpus_folder, max_bad=1))) == 32
    write_clip(corpus_folder / "target.npz").rename(corpus_folder / "target")
    assert len(open_both(options(corpus_folder))) == 33


def run_builder(*arguments: object) -> subprocess.Popen:
    """Run builder.py in another process."""
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": str(here.parents[1])}
    command = [sys.executable, here / "builder.py", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def start_slow_builder(root: Path, folder: Path) -> subprocess.Popen:
    """A builder that has a finished pack and waits for folder/go to put it in its place."""
    ready = folder / "ready"
    process = run_builder("slow", root, folder / "cache", ready, folder / "go")
    while not ready.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    return process


def end_of(process: subprocess.Popen) -> tuple[int, str]:
    _, errors = process.communicate()
    return process.returncode, errors


def test_of_two_builders_the_second_waits_and_finds_the_pack_of_the_first(
    corpus_folder, options, tmp_path, monkeypatch
):
    slow = start_slow_builder(corpus_folder, tmp_path)
    said: list[str] = []
    monkeypatch.setattr(store, "say", said.append)
    monkeypatch.setattr(store, "_pack", None)  # it cannot be packed here
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(open_both, options(corpus_folder))
        while not said:
            assert not second.done()
            time.sleep(0.01)
        assert said == [f"waiting for another process that packs into {tmp_path / 'cache'}"]
        (tmp_path / "go").touch()
        assert end_of(slow) == (0, "")
        assert len(second.result()) == 32
    assert builds(tmp_path / "cache") == []
    assert len(packs(tmp_path / "cache")) == 1


def test_what_a_killed_builder_leaves_is_removed_and_not_used(corpus_folder, options, tmp_path):
    killed = start_slow_builder(corpus_folder, tmp_path)
    os.kill(killed.pid, signal.SIGKILL)
    assert end_of(killed)[0] == -signal.SIGKILL
    assert len(builds(tmp_path / "cache")) == 1
    assert packs(tmp_path / "cache") == []
    assert len(open_both(options(corpus_folder))) == 32
    assert builds(tmp_path / "cache") == []
    assert len(packs(tmp_path / "cache")) == 1


def test_many_builders_at_once(corpus_folder, options, tmp_path):
    (tmp_path / "go").touch()
    arguments = (corpus_folder, tmp_path / "cache", tmp_path / "ready", tmp_path / "go")
    processes = [run_builder("slow", *arguments) for _ in range(3)]
    assert [end_of(process) for process in processes] == 3 * [(0, "")]
    assert builds(tmp_path / "cache") == []
    assert len(packs(tmp_path / "cache")) == 1


def test_a_cache_that_cannot_be_made(corpus_folder, options, tmp_path):
    (tmp_path / "file").touch()
    reason = r"cannot write the cache .*/cache: Not a directory; it needs about 0\.\d MB.*--data.ca"
    with pytest.raises(UserError, match=reason):
        open_both(options(corpus_folder, cache=tmp_path / "file" / "cache"))


def test_a_disk_that_gets_full(corpus_folder, options, tmp_path):
    code, message = end_of(run_builder("full", corpus_folder, tmp_path / "cache", 9000))
    assert code == 1
    assert "File too large; it needs about 0." in message
    assert builds(tmp_path / "cache") == packs(tmp_path / "cache") == []
    shutil.rmtree(tmp_path / "cache")
    assert len(open_both(options(corpus_folder))) == 32
