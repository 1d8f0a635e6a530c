"""Reading file names."""

import pytest

from mmattn.data.names import ClipName, class_names, label_of, parse_name


def test_ravdess_name():
    assert parse_name("03-01-05-02-01-02-12") == ClipName(
        "03-01-05-02-01-02-12", "ravdess", "ravdess-12", "anger", "strong", "1", 2
    )


@pytest.mark.parametrize(
    ("code", "emotion"),
    [
        *((1, "neutral"), (2, "calm"), (3, "happy"), (4, "sad")),
        *((5, "anger"), (6, "fear"), (7, "disgust"), (8, "surprised")),
    ],
)
@pytest.mark.parametrize("modality", ["01", "02", "03"])
def test_ravdess_emotions(modality, code, emotion):
    assert parse_name(f"{modality}-01-{code:02d}-01-01-01-01").emotion == emotion


@pytest.mark.parametrize(
    ("stem", "emotion", "intensity"),
    [
        ("1001_DFA_ANG_XX", "anger", "unspecified"),
        ("1001_IEO_DIS_LO", "disgust", "low"),
        ("1001_IEO_FEA_MD", "fear", "medium"),
        ("1001_IEO_HAP_HI", "happy", "high"),
        ("1040_ITH_SAD_X", "sad", "unspecified"),
    ],
)
def test_crema_d_name(stem, emotion, intensity):
    name = parse_name(stem)
    assert (name.corpus, name.speaker) == ("crema-d", f"crema-d-{stem[:4]}")
    assert (name.emotion, name.intensity, name.sentence) == (emotion, intensity, stem[5:8])


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
    with pytest.raises(ValueError, match="neither RAVDESS"):
        parse_name(stem)


def test_six_merges_calm_and_leaves_surprised_out():
    assert label_of("calm", "six") == label_of("neutral", "six") == 4
    assert label_of("surprised", "six") is None
    assert [label_of(name, "six") for name in class_names("six")] == list(range(6))


def test_ravdess8_follows_the_codes_of_the_names():
    for code in range(1, 9):
        name = parse_name(f"03-01-0{code}-01-01-01-01")
        assert label_of(name.emotion, "ravdess8") == code - 1
