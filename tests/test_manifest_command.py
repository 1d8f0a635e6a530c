"""`mmattn manifest`: what it writes, what it says it understood, and what it refuses."""

import csv
import os
from pathlib import Path

import pytest

from mmattn.data.corpora import crema_d
from mmattn.data.corpora.audformat import read_database
from mmattn.data.manifest import read_manifest
from mmattn.errors import UserError
from mmattn.run.manifest import agreement, make_manifest

EMOTIONS = ("bored", "contempt", "relief")


def touch(folder: Path, *files: str) -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


@pytest.fixture
def clips(tmp_path):
    files = (
        f"{emotion}/{speaker:02d}_{n}.wav"
        for emotion in EMOTIONS
        for speaker in range(2)
        for n in range(3)
    )
    return touch(tmp_path / "clips", *files)


def test_class_folders(commands, clips):
    touch(clips, "bored/readme.txt", "bored/other.wav")
    text = commands.run("mmattn", "manifest", clips, "--pattern", "{emotion}/{speaker}_{take}")
    lines = [line.split() for line in text.splitlines()]
    for emotion in EMOTIONS:
        assert [emotion, "6", "2"] in lines  # clips, speakers
    assert "18 clips, 2 speakers" in text and "1 .txt" in text
    assert "1 of 19 clips left out" in text and "bored/other.wav" in text
    assert f"mmattn extract {clips}/manifest.csv --to FEATURES" in text
    manifest = read_manifest(clips / "manifest.csv")
    assert set(manifest.speakers) == {"clips-00", "clips-01"}
    assert manifest.clips[:2] == ["bored/00_0", "bored/00_1"]
    assert manifest.columns["take"][:3] == ["0", "1", "2"]


def test_feature_files_and_a_table_above_the_folder(commands, clips, tmp_path):
    for path in clips.rglob("*.wav"):
        path.rename(path.with_suffix(".npz"))
    to = tmp_path / "all clips.csv"
    options = ("--pattern", "{emotion}/{take}", "--to", to)
    text = commands.run("mmattn", "manifest", clips, *options)
    assert "SPEAKERS UNKNOWN" in text and "--data.target" not in text
    assert "next:" not in text  # training needs speakers
    manifest = read_manifest(to)
    assert manifest.clips[0] == "clips/bored/00_0" and set(manifest.columns["corpus"]) == {"clips"}
    assert "exists; --overwrite" in commands.run("mmattn", "manifest", clips, *options, code=2)
    options = ("--pattern", "{emotion}/{speaker}_{take}", "--to", to, "--overwrite")
    text = commands.run("mmattn", "manifest", clips, *options)
    assert f"--data.roots '{to}'\n" in text  # no modality is known of what is no feature file


def test_without_emotions_it_says_how_to_train(commands, clips):
    text = commands.run("mmattn", "manifest", clips, "--pattern", "{emo}/{speaker}_{take}")
    assert "No clip has a value in the column emotion, which training needs" in text
    assert "with values are corpus, file, emo, speaker, take. Name it" in " ".join(text.split())
    assert "next:" not in text


def test_ratings_of_crema_d(commands, tmp_path):
    folder = touch(
        tmp_path / "clips",
        *(f"{actor}_IEO_{emotion}_XX.flv" for actor in (1001, 1002) for emotion in ("SAD", "NEU")),
    )
    raters = tmp_path / "raters"
    raters.mkdir()
    (raters / "VideoDemographics.csv").write_text(
        "ActorID,Age,Sex,Race,Ethnicity\n1001,51,Male,Asian,Hispanic\n1002,21,Female,Asian,Hispanic\n"
    )
    (raters / "tabulatedVotes.csv").write_text(
        '"",A,D,F,H,N,S,fileName\n'
        "300001,0,0,0,0,0,4,1001_IEO_SAD_XX\n"
        "300002,0,0,0,0,2,2,1001_IEO_NEU_XX\n"
        "300003,0,0,0,0,4,0,1002_IEO_SAD_XX\n"
        "300004,0,0,0,0,4,0,1002_DFA_SAD_XX\n"
    )
    text = commands.run("mmattn", "manifest", folder, "--corpus", "crema-d", "--ratings", raters)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "all rated clips 4 25.0% 25.0% 0.250" in lines
    assert "clips here 3 33.3% 33.3% 0.333" in lines
    assert "1002_IEO_NEU_XX.flv no ratings" in lines
    rows = list(csv.DictReader((folder / "manifest.csv").read_text().splitlines()))
    assert [(row["clip"], row["sex"], row["perceived"], row["emotion.sad"]) for row in rows] == [
        ("1001_IEO_NEU_XX", "male", "", "2"),
        ("1001_IEO_SAD_XX", "male", "sad", "4"),
        ("1002_IEO_SAD_XX", "female", "neutral", "0"),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "expected exactly one of --corpus, --pattern and --audformat"),
        (("--corpus", "ravdess", "--pattern", "{a}"), "expected exactly one of --corpus"),
        (("--corpus", "cremad"), "--corpus cremad: expected ravdess or crema-d"),
        (("--corpus", "ravdess"), "no clips left; nothing was written"),
        (("--pattern", "emotion"), "expected names of columns in braces"),
        (("--pattern", "{emotion}/{take}", "--ratings", "x"), "expected --corpus crema-d"),
        (("--corpus", "crema-d", "--ratings", "/nowhere"), "/nowhere/VideoDemographics.csv"),
        (("--pattern", "{emotion}/{take}", "--to", "/elsewhere/m.csv"), "--to /elsewhere/m.csv"),
        (("--pattern", "{emotion}", "--to", "m.xlsx"), "a name that ends in .csv or .tsv"),
    ],
)
def test_what_is_refused(commands, clips, options, words):
    text = commands.run("mmattn", "manifest", clips, *options, code=2)
    assert words in " ".join(text.split())
    assert not (clips / "manifest.csv").exists()


@pytest.mark.parametrize(
    ("votes", "percent", "bits"),
    [
        ("voice", (41.6, 8.7), 1.196),
        ("face", (66.3, 6.3), 1.009),
        ("audio-visual", (72.2, 5.6), 0.924),
    ],
)
def test_the_real_ratings(votes, percent, bits):
    folder = Path(os.environ.get("MMATTN_RAVDESS", "/nowhere"), "crema_d")
    if not folder.exists():
        pytest.skip("MMATTN_RAVDESS names no folder with crema_d")
    clips, agreed, tied, entropy = agreement(crema_d.ratings(folder, votes))
    assert clips == 7442
    assert (round(100 * agreed, 1), round(100 * tied, 1)) == percent
    assert round(entropy, 3) == bits


@pytest.mark.filterwarnings("ignore:.*inplace.*")  # in audformat
def test_a_database_in_audformat(tmp_path):
    audformat = pytest.importorskip("audformat")
    database = audformat.Database("sofa")
    database.schemes["emotion"] = audformat.Scheme("str", labels=["bored", "relief"])
    speakers = {"01": {"gender": "female"}, "02": {"gender": "male"}}
    database.schemes["speaker"] = audformat.Scheme("str", labels=speakers)
    database.schemes["age"] = audformat.Scheme("int")
    index = audformat.segmented_index(
        ["a/1.wav", "a/1.wav", "b/2.wav", "b/3.wav"],
        ["0s", "1.5s", "0s", "0.05s"],
        ["1.5s", "3s", None, None],
    )
    database["clips"] = audformat.Table(index)
    for name, cells in {
        "emotion": ["bored", "relief", "bored", None],
        "speaker": ["01", "01", "02", "02"],
        "age": [30, 30, None, 41],
    }.items():
        database["clips"][name] = audformat.Column(scheme_id=name)
        database["clips"][name].set(cells)
    database.save(str(tmp_path))
    rows, left_out = read_database(tmp_path)
    assert left_out == [("b/3.wav", "no emotion")]
    names = ("file", "start", "end", "emotion", "speaker", "age", "gender")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("a/1.wav", "0.0", "1.5", "bored", "01", "30", "female"),
        ("a/1.wav", "1.5", "3.0", "relief", "01", "30", "female"),
        ("b/2.wav", "", "", "bored", "02", "", "male"),
    ]
    touch(tmp_path, "a/1.wav", "b/2.wav")
    make_manifest(tmp_path, tmp_path / "all.csv", database=tmp_path)
    manifest = read_manifest(tmp_path / "all.csv")
    assert manifest.clips == ["a/1@0.0-1.5", "a/1@1.5-3.0", "b/2"]
    del database.schemes["emotion"], database.tables["clips"]
    database.save(str(tmp_path))
    with pytest.raises(UserError, match="no scheme 'emotion', there are: age, speaker"):
        read_database(tmp_path)
