"""The table of a corpus: what is read, and a clear error for each way to get it wrong."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from mmattn.data.manifest import read_manifest, say_lacking, write_manifest
from mmattn.errors import UserError

ROWS = "file,speaker,emotion\na/1.npz,01,bored\na/2.npz,02,relief\n"


@pytest.fixture
def table(tmp_path):
    """Writes manifest.csv in a folder `corpus` with some files."""

    def write(content: str | bytes, *files: str, name: str = "manifest.csv") -> Path:
        for file in files or ("a/1.npz", "a/2.npz"):
            path = tmp_path / "corpus" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        path = tmp_path / "corpus" / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def faults(monkeypatch):
    """Line, column, found and expected of each fault that is shown."""

    def read(path: Path, *options) -> list[tuple]:
        shown = []
        monkeypatch.setattr(
            "mmattn.data.manifest.say_table", lambda title, columns, rows, **_: shown.extend(rows)
        )
        with pytest.raises(UserError) as error:
            read_manifest(path, *options)
        plural = "s" * (len(shown) > 1)
        assert str(error.value).startswith(f"{path}: {len(shown)} fault{plural} in ")
        return shown

    return read


def test_cells_are_text_and_what_is_not_given_is_empty(table):
    path = table("file,speaker,emotion,sex\na/1.npz,01,NA,f\na/2.npz,,relief,\n")
    manifest = read_manifest(path)
    assert len(manifest) == 2 and manifest.path == path
    assert manifest.clips == ["a/1", "a/2"]
    assert manifest.files == {"": [str(path.parent / "a/1.npz"), str(path.parent / "a/2.npz")]}
    assert manifest.speakers == ["corpus-01", ""]
    assert manifest.emotions == ["NA", "relief"]
    assert manifest.columns["corpus"] == ["corpus", "corpus"]
    assert manifest.splits == ["", ""] and manifest.votes == {}
    assert np.isnan([manifest.start, manifest.end]).all()
    assert manifest.columns["sex"] == ["f", ""] and manifest.lines == [2, 3]


def test_segments_votes_and_splits(table):
    path = table(
        "file,start,end,split,corpus,emotion.happy,emotion.sad\n"
        "a/1.npz,,2.5,dev,iemocap,3,\n"
        "a/1.npz,2.5,,valid,,0.25,.75\n"
        "a/2.npz,0,1,Train,,1,1\n"
    )
    manifest = read_manifest(path)
    assert manifest.clips == ["a/1@-2.5", "a/1@2.5-", "a/2@0-1"]
    np.testing.assert_array_equal(manifest.start, [np.nan, 2.5, 0])
    np.testing.assert_array_equal(manifest.end, [2.5, np.nan, 1])
    assert manifest.splits == ["validation", "validation", "train"]
    assert manifest.columns["corpus"] == ["iemocap", "corpus", "corpus"]
    assert manifest.emotions == ["", "", ""]
    np.testing.assert_array_equal(manifest.votes["happy"], [3, 0.25, 1])
    np.testing.assert_array_equal(manifest.votes["sad"], [0, 0.75, 1])


def test_files_by_modality_are_joined_by_row(table):
    path = table(
        "file.audio,file.video,emotion\nw/1.npz,f/1.npz,sad\nw/2.npz,,sad\n,f/3.npz,sad\n",
        *("w/1.npz", "w/2.npz", "f/1.npz", "f/3.npz"),
    )
    manifest = read_manifest(path)
    folder = path.parent
    assert manifest.files == {
        "audio": [str(folder / "w/1.npz"), str(folder / "w/2.npz"), ""],
        "video": [str(folder / "f/1.npz"), "", str(folder / "f/3.npz")],
    }
    assert manifest.clips == ["w/1", "w/2", "f/3"]


def test_columns_of_other_names_and_another_target(table):
    path = table("file_name,speaker_id,emotion,valence\na/1.npz,7,sad,low\na/2.npz,8,sad,high\n")
    manifest = read_manifest(path, {"speaker": "speaker_id"}, "valence")
    assert manifest.speakers == ["corpus-7", "corpus-8"]
    assert manifest.emotions == ["low", "high"]
    assert manifest.columns["emotion"] == ["sad", "sad"]


def test_a_named_column_takes_the_place_of_the_tables_own(table):
    path = table("file,speaker,actor,emotion\na/1.npz,,7,sad\na/2.npz,x,8,sad\n")
    manifest = read_manifest(path, {"speaker": "actor"})
    assert manifest.speakers == ["corpus-7", "corpus-8"]
    assert manifest.columns["replaced speaker"] == ["", "x"]


def test_columns_that_training_needs(monkeypatch):
    said = []
    monkeypatch.setattr("mmattn.data.manifest.say", said.append)
    assert say_lacking({"speaker": ["1"], "emotion": ["sad"]}) == []
    assert say_lacking({"speaker": ["1"], "emotion": [""], "emotion.sad": ["2"]}) == [] == said
    assert say_lacking({"speaker": [""], "actor": ["1"], "emotion": ["sad"]}) == ["speaker"]
    assert "values are actor, emotion. Name it" in said[0] and "--data.disjoint" in said[0]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\xef\xbb\xbf" + ROWS.encode(), "manifest.csv"),
        (ROWS.replace("\n", "\r\n") + "\r\n", "manifest.csv"),
        (ROWS.replace(",", " , ").replace("\n", " \n"), "manifest.csv"),
        (ROWS.replace(",", "\t"), "manifest.TSV"),
        (ROWS.replace("a/1.npz", '"a/1.npz"') + "\n\n", "clips.csv"),
    ],
    ids=["BOM", "CRLF", "blanks", "tabs", "quotes"],
)
def test_ways_to_write_the_same_table(table, content, name):
    manifest = read_manifest(table(content, name=name))
    assert manifest.clips == ["a/1", "a/2"] and manifest.emotions == ["bored", "relief"]


@pytest.mark.parametrize(("in_table", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_are_the_same_however_they_are_composed(table, in_table, on_disk):
    file = "Müller/é.npz"
    there = unicodedata.normalize(on_disk, file)
    path = table(unicodedata.normalize(in_table, f"file,emotion\n{file},é\n"), there)
    manifest = read_manifest(path)
    assert os.path.samefile(manifest.files[""][0], path.parent / there)
    assert manifest.clips == ["Müller/é"] and manifest.emotions == ["é"]


def test_every_fault_is_named_with_line_and_column(table, faults):
    path = table(
        "file,speaker,emotion,split,start,end\n"
        "a/1.npz,01,bored,train,0,1\n"
        "a/3.npz,01,bored,train,,\n"
        "A/1.NPZ,01,bored,train,,\n"
        "a/2.npz,01,,eval,2,1\n"
        "/a/2.npz,01,bored,,x,-1\n"
        "b/../a/2.npz,01,bored,,,\n"
        "a\\2.npz,01,bored,,inf,0\n"
        ",01,bored,,,\n"
        "a,01,bored,,,\n"
        "a/1.npz,01,bored\n"
        "a/1.npz,02,relief,test,0.0,1.0\n"
    )
    below = "a file below corpus/"
    portable = f"{below}, relative to it, with / and no part . or .."
    number = "a number, 0 or more"
    assert faults(path) == [
        (3, "file", "a/3.npz", f"{below}, which exists"),
        (4, "file", "A/1.NPZ", f"{below} (a/1.npz is there)"),
        (5, "emotion", "nothing", "an emotion"),
        (5, "end", "1", "above start, 2"),
        (5, "split", "eval", "train, validation or test"),
        (6, "end", "-1", number),
        (6, "file", "/a/2.npz", portable),
        (6, "start", "x", number),
        (7, "file", "b/../a/2.npz", portable),
        (8, "end", "0", "above start, 0"),
        (8, "file", "a\\2.npz", portable),
        (8, "start", "inf", number),
        (9, "file", "nothing", below),
        (10, "file", "a", f"{below} (a is not a file)"),
        (11, "", "3 cells", "6, as in the header"),
        (12, "file", "a/1.npz", "once, it is in line 2"),
    ]


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ("a/1.npz,one\na/2.npz,one", (3, "clip", "one", "once, it is in line 2")),
        ("a/1.npz,one\na/1.npz,two", (3, "file", "a/1.npz", "once, it is in line 2")),
        ("a/1.npz,a/2\na/2.npz,", (3, "clip", "a/2", "once, it is in line 2")),
        ("a/1.npz,\na/1.npz,", (3, "file", "a/1.npz", "once, it is in line 2")),
    ],
)
def test_a_clip_and_a_file_are_there_once(table, faults, rows, found):
    assert faults(table(f"file,clip\n{rows}\n"), {}, None) == [found]


@pytest.mark.parametrize(
    ("votes", "found"),
    [
        ("1,-2", ("emotion.sad", "-2", "a number, 0 or more")),
        ("1,two", ("emotion.sad", "two", "a number, 0 or more")),
        ("1,nan", ("emotion.sad", "nan", "a number, 0 or more")),
        ("0,0", ("emotion.happy", "sum 0", "a vote for any emotion")),
        (",", ("emotion.happy", "sum 0", "a vote for any emotion")),
    ],
)
def test_votes_that_cannot_be_shares(table, faults, votes, found):
    text = f"file,emotion.happy,emotion.sad\na/1.npz,1,1\na/2.npz,{votes}\n"
    assert faults(table(text)) == [(3, *found)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (ROWS.replace(",", ";"), ["commas", "file;speaker;emotion"]),
        (ROWS.replace(",", "\t"), ["commas", "file\tspeaker"]),
        (ROWS.replace("bored", "gelöst").encode("latin-1"), ["line 2", "0xf6", "iconv", "UTF-8"]),
        (ROWS.encode("utf-16"), ["line 1", "0xff", "UTF-8"]),
        ("", ["no column 'file'"]),
        ("file,emotion\n", ["a row for each clip"]),
        ("path,emotion\na/1.npz,sad\n", ["no column 'file'", "path,emotion"]),
        ("file,file.audio,emotion\na/1.npz,,sad\n", ["file or file.audio", "file,file.audio"]),
        ("file,emotion,emotion\na/1.npz,sad,sad\n", ["each column once"]),
        ("file.audio,file.Audio,emotion\na/1.npz,,sad\n", ["each column once", "file.Audio"]),
        ("file,speaker\na/1.npz,01\n", ["no column 'emotion'", "file, speaker"]),
        ('file,emotion\n"a/1.npz,' + 200_000 * "x", ["line 2", "field larger"]),
    ],
)
def test_what_is_no_table_at_all(table, content, words):
    path = table(content)
    with pytest.raises(UserError) as error:
        read_manifest(path)
    assert all(word in str(error.value) for word in (str(path), *words))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (({"speaker": "who"},), "no column 'who'; the first line is: file,speaker,emotion"),
        (({"speaker": "emotion"},), "no column 'emotion'; there are: file, replaced speaker, sp"),
        (({}, "valence"), "no column 'valence'; there are: file, speaker, emotion"),
    ],
)
def test_columns_that_are_not_there(table, options, words):
    with pytest.raises(UserError, match=words):
        read_manifest(table(ROWS), *options)


def test_of_many_faults_the_first_are_shown(table, monkeypatch):
    shown = []
    monkeypatch.setattr("mmattn.console.LOG.info", shown.append)
    rows = "".join(f"b/{n}.npz,sad\n" for n in range(30))
    with pytest.raises(UserError, match=r"manifest.csv: 30 faults in 30 rows$"):
        read_manifest(table(f"file,emotion\n{rows}"))
    assert "the first 20" in shown[0] and "b/19.npz" in shown[0] and "b/20.npz" not in shown[0]


def test_files_that_no_row_names_are_counted(table, monkeypatch):
    said = []
    monkeypatch.setattr("mmattn.data.manifest.say", said.append)
    read_manifest(table(ROWS))
    assert said == []
    path = table(ROWS, "a/3.npz", "a/4.NPZ", "a/notes.txt", "a/._3.npz")
    read_manifest(path)
    where = f"{path.parent}: beside the clips of its table, but in none of its rows"
    assert said == [f"{where}: 2 files, such as {path.parent}/a/3.npz"]
    said.clear()
    read_manifest(table("file\nb/1.mp4\n", "b/1.mp4", "b/2.mp4", "b/1.txt"), target=None)
    assert len(said) == 1 and said[0].endswith("1 file, such as " + str(path.parent / "b/2.mp4"))


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.tsv"])
def test_what_is_written_is_read_again(table, name):
    rows = [
        {"emotion.sad": "1", "sex": "f", "emotion": "sad, or not", "file": "a/1.npz"},
        {"file": "a/2.npz", "speaker": 'the "other"', "emotion": "", "emotion.sad": "2"},
    ]
    path = table("", name="other").with_name(name)
    write_manifest(path, rows)
    assert path.read_text().splitlines()[0] == (
        "file,speaker,emotion,sex,emotion.sad".replace(",", "\t" if name[-3] == "t" else ",")
    )
    manifest = read_manifest(path)
    assert manifest.emotions == ["sad, or not", ""]
    assert manifest.speakers == ["", 'corpus-the "other"']
    with pytest.raises(UserError, match="exists; --overwrite"):
        write_manifest(path, rows)
    write_manifest(path, rows[:1], overwrite=True)
    assert len(read_manifest(path)) == 1


def test_folders_are_listed_once_and_files_are_not_asked_for_one_by_one(table, monkeypatch):
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or scandir(folder))
    files = [f"{folder}/{n}.npz" for n in range(50) for folder in ("a", "b/c")]
    path = table("file,emotion\n" + "".join(f"{file},sad\n" for file in files), *files)
    monkeypatch.setattr(os, "stat", lambda *_, **__: pytest.fail("one by one"))
    assert len(read_manifest(path)) == 100
    folder = str(path.parent)
    assert sorted(listed) == [folder, f"{folder}/a", f"{folder}/b", f"{folder}/b/c"]
