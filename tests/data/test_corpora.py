"""What the names, folders and tables of corpora say of their clips."""

from pathlib import Path

import numpy as np
import pytest

from mmattn.data.corpora import CORPORA, crema_d, read_table, row_of
from mmattn.data.corpora.folders import by_name, by_pattern, find_clips, read_rows
from mmattn.errors import UserError
from mmattn.run.manifest import agreement


def test_ravdess_name():
    assert row_of("03-02-05-02-01-02-12") == {
        **{"corpus": "ravdess", "speaker": "12", "emotion": "anger", "intensity": "strong"},
        **{"statement": "1", "repetition": "2", "modality": "audio", "channel": "song"},
        "sex": "female",
    }
    assert row_of("01-01-01-01-02-01-01")["sex"] == "male"


@pytest.mark.parametrize(
    ("code", "emotion"),
    [
        *((1, "neutral"), (2, "calm"), (3, "happy"), (4, "sad")),
        *((5, "anger"), (6, "fear"), (7, "disgust"), (8, "surprised")),
    ],
)
@pytest.mark.parametrize("modality", ["01", "02", "03"])
def test_ravdess_emotions(modality, code, emotion):
    assert row_of(f"{modality}-01-{code:02d}-01-01-01-01")["emotion"] == emotion


@pytest.mark.parametrize(
    ("stem", "emotion", "level"),
    [
        ("1001_DFA_ANG_XX", "anger", "unspecified"),
        ("1001_IEO_DIS_LO", "disgust", "low"),
        ("1001_IEO_FEA_MD", "fear", "medium"),
        ("1001_IEO_HAP_HI", "happy", "high"),
        ("1001_IEO_NEU_XX", "neutral", "unspecified"),
        ("1040_ITH_SAD_X", "sad", "unspecified"),
    ],
)
def test_crema_d_name(stem, emotion, level):
    assert row_of(stem) == {
        **{"corpus": "crema-d", "speaker": stem[:4], "emotion": emotion},
        **{"level": level, "sentence": stem[5:8]},
    }


@pytest.mark.parametrize(
    "stem",
    [
        "",
        "clip",
        "03-01-09-01-01-01-01",  # there is no ninth emotion
        "03-01-05-01-02-01-25",  # nor a 25th actor
        "03-01-05-01-02-01-12-1",
        "1001_DFA_SUR_XX",
        "1001_DFA_ANG_YY",
        "1001_DFA_ANG_XX\n",
        "١٠٠١_DFA_ANG_XX",
    ],
)
def test_other_names_are_refused(stem):
    with pytest.raises(ValueError, match=r"neither RAVDESS \(03-.*\) nor CREMA-D \(1001_"):
        row_of(stem)


def test_folds_are_those_published():
    ravdess, crema = CORPORA["ravdess"].FOLDS, CORPORA["crema-d"].FOLDS
    assert [len(fold) for fold in ravdess] == 6 * [4]
    assert [len(fold) for fold in crema] == [18, 18, 18, 18, 19]
    assert ravdess[1] == ["ravdess-05", "ravdess-06", "ravdess-07", "ravdess-08"]
    assert (crema[1][0], crema[4][-1]) == ("crema-d-1019", "crema-d-1091")


def touch(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()


def test_a_table_from_names_alone(tmp_path):
    touch(tmp_path, "x/1001_DFA_ANG_XX.npz", "y/01-01-02-01-01-01-02.npz", "y/other.npz")
    manifest, unnamed = read_table([tmp_path], {}, "emotion")
    assert manifest.path is None
    assert manifest.clips == ["01-01-02-01-01-01-02", "1001_DFA_ANG_XX"]
    assert manifest.files == {
        "": [f"{tmp_path}/y/{manifest.clips[0]}.npz", f"{tmp_path}/x/{manifest.clips[1]}.npz"]
    }
    assert manifest.speakers == ["ravdess-02", "crema-d-1001"]
    assert manifest.emotions == ["calm", "anger"]
    assert manifest.columns["corpus"] == ["ravdess", "crema-d"]
    assert manifest.columns["sex"] == ["female", ""]
    assert np.isnan([manifest.start, manifest.end]).all()
    assert [file for file, _ in unnamed] == [f"{tmp_path}/y/other.npz"]
    assert read_table([tmp_path], {}, "sex")[0].emotions == ["female", "anger"]


def test_tables_and_names_are_one_table(tmp_path):
    touch(tmp_path, "a/1.npz", "b/2.npz", "c/1001_DFA_ANG_XX.npz")
    (tmp_path / "a/manifest.csv").write_text(
        "file,speaker,valence,emotion.sad,start\n1.npz,7,low,3,2\n"
    )
    (tmp_path / "b/manifest.csv").write_text("file,valence,sex\n2.npz,high,male\n")
    manifest, unnamed = read_table([tmp_path / name for name in "cba"], {}, "valence")
    assert manifest.path == tmp_path / "a/manifest.csv" and unnamed == []
    assert manifest.clips == ["1@2-", "2", "1001_DFA_ANG_XX"] and manifest.lines == [2, 2, 0]
    assert manifest.speakers == ["a-7", "", "crema-d-1001"]
    assert manifest.emotions == ["low", "high", "anger"]
    assert manifest.columns["sex"] == ["", "male", ""]
    np.testing.assert_array_equal(manifest.votes["sad"], [3, 0, 0])
    np.testing.assert_array_equal(manifest.start, [2, np.nan, np.nan])


def test_clips_of_a_folder(tmp_path):
    touch(tmp_path, "b/2.WAV", "a/2.mp4", "1.npz", "notes.txt", "README", ".DS_Store", ".x/3.wav")
    touch(tmp_path / "elsewhere", "0.wav")
    (tmp_path / "a/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a/circle").symlink_to(tmp_path)
    touch(outside := tmp_path.with_name("outside"), "3.npz")
    (tmp_path / "linked").symlink_to(outside)
    (tmp_path / "broken.mp4").symlink_to("nowhere")
    files, others = find_clips(tmp_path, (".npz", ".mp4", ".wav"))
    assert files == ["elsewhere/0.wav", "1.npz", "a/2.mp4", "b/2.WAV", "linked/3.npz"]
    assert others == {".txt": 1, "": 1, ".mp4": 1}
    with pytest.raises(UserError, match=r"\(\.flac\), found only other files: .*2 \.mp4"):
        find_clips(tmp_path, (".flac",))


def test_rows_by_a_pattern():
    read = by_pattern("{emotion}/{speaker}_{take}")
    files = ["bored/01_2.npz", "bored/01_1.npz", "bored/01_2.mp4", "01_1.wav", "x/y/01_1.wav"]
    rows, left_out = read_rows([*files, "sad/a_b_c.wav"], read)
    assert rows == [
        {"file": "bored/01_1.npz", "emotion": "bored", "speaker": "01", "take": "1"},
        {"file": "bored/01_2.npz", "emotion": "bored", "speaker": "01", "take": "2"},
    ]
    assert left_out == [
        ("bored/01_2.mp4", "the same clip as bored/01_2.npz"),
        ("01_1.wav", "does not fit the pattern {emotion}/{speaker}_{take}"),
        ("x/y/01_1.wav", "does not fit the pattern {emotion}/{speaker}_{take}"),
        ("sad/a_b_c.wav", "fits the pattern {emotion}/{speaker}_{take} in several ways"),
    ]


def test_what_stands_between_is_taken_as_it_is():
    read = by_pattern("(x)/{speaker}.{emotion}")
    assert read("(x)/1.sad")[1] == {"speaker": "1", "emotion": "sad"}
    with pytest.raises(ValueError, match="does not fit"):
        read("x/1.sad")
    with pytest.raises(ValueError, match="does not fit"):
        read("(x)/1-sad")


@pytest.mark.parametrize(
    "pattern", ["", "emotion", "{}", "{a b}/{c}", "{a}/{a}", "{file}", "{a}/{b", "a}/{b}"]
)
def test_patterns_that_cannot_be(pattern):
    with pytest.raises(UserError, match=r"--pattern .* expected names of columns in braces"):
        by_pattern(pattern)


def test_rows_by_name_take_the_fullest_file_of_a_take():
    stem = "-01-05-01-01-01-01"
    rows, left_out = read_rows(
        [f"01{stem}.mp4", f"v/02{stem}.mp4", f"a/03{stem}.wav", "a/03-01-05-01-01-02-01.wav", "x"],
        by_name(CORPORA["ravdess"]),
    )
    assert [(row["file"], row["clip"]) for row in rows] == [
        (f"01{stem}.mp4", f"01{stem}"),
        ("a/03-01-05-01-01-02-01.wav", "03-01-05-01-01-02-01"),
    ]
    assert left_out == [
        (f"v/02{stem}.mp4", f"the same clip as 01{stem}.mp4"),
        (f"a/03{stem}.wav", f"the same clip as 01{stem}.mp4"),
        ("x", "not named as in RAVDESS (03-01-05-01-02-01-12)"),
    ]
    rows, left_out = read_rows(
        ["f/1001_DFA_ANG_XX.flv", "w/1001_DFA_ANG_XX.wav"], by_name(CORPORA["crema-d"])
    )
    assert [row["file"] for row in rows] == ["f/1001_DFA_ANG_XX.flv"] and len(left_out) == 1


VOTES = """"","A","D","F","H","N","S","fileName","numResponses"
"100001",0,0,0,0,4,4,"1001_IEO_SAD_XX",8
"200001",0,0,0,0,0,8,"1001_IEO_SAD_XX",8
"300001",0,0,0,0,6,2,"1001_IEO_SAD_XX",8
"100002",8,0,0,0,0,0,"1002_IEO_ANG_XX",8
"200002",4,0,0,4,0,0,"1002_IEO_ANG_XX",8
"300002",2,2,2,2,0,0,"1002_IEO_ANG_XX",8
"""
ACTORS = """"ActorID","Age","Sex","Race","Ethnicity"
1001,51,"Male","Caucasian","Not Hispanic"
1002,21,"Female","Asian","Hispanic"
"""


@pytest.fixture
def raters(tmp_path):
    (tmp_path / "tabulatedVotes.csv").write_text(VOTES)
    (tmp_path / "VideoDemographics.csv").write_text(ACTORS)
    return tmp_path


def test_ratings_of_those_who_saw_and_heard(raters):
    rated = crema_d.ratings(raters)
    assert rated["1001_IEO_SAD_XX"] == {
        **{"sex": "male", "age": "51", "race": "Caucasian", "ethnicity": "Not Hispanic"},
        **{"perceived": "neutral", "emotion.anger": "0", "emotion.disgust": "0"},
        **{"emotion.fear": "0", "emotion.happy": "0", "emotion.neutral": "6", "emotion.sad": "2"},
    }
    assert rated["1002_IEO_ANG_XX"]["perceived"] == ""  # tied
    # -(3/4 log2 3/4 + 1/4 log2 1/4) = 0.811, and 2 bits of four alike
    assert agreement(rated) == pytest.approx((2, 0.0, 0.5, (0.811278 + 2) / 2), abs=1e-6)


@pytest.mark.parametrize(
    ("votes", "agreed", "bits"), [("voice", 0.5, (1 + 0) / 2), ("face", 0.5, (0 + 1) / 2)]
)
def test_ratings_of_one_modality(raters, votes, agreed, bits):
    rated = crema_d.ratings(raters, votes)
    assert agreement(rated) == pytest.approx((2, agreed, 0.5, bits))
    assert rated["1001_IEO_SAD_XX"]["perceived"] == "neutral"  # by those who saw and heard


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"300002",2,2,2,2', '"300002",0,0,0,0', "line 7: .*votes, of sum 1 or more"),
        ('"300002",2', '"300002",-2', "line 7: .*votes"),
        ('"300002",2', '"300002",NA', "line 7: .*'NA'"),
        ('"300002"', '"400002"', "line 7: .*the id"),
        ("1002_IEO_ANG", "1099_IEO_ANG", "line 5: .*one of the actors"),
        ("1002_IEO_ANG", "1002_IEO", "line 5: .*the name of a clip"),
        ('"fileName"', '"file"', "line 2: KeyError.*fileName"),
    ],
)
def test_ratings_that_are_not_as_they_should_be(raters, old, new, words):
    (raters / "tabulatedVotes.csv").write_text(VOTES.replace(old, new))
    with pytest.raises(UserError, match=f"tabulatedVotes.csv, {words}"):
        crema_d.ratings(raters)
