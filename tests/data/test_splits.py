"""Splits: no speaker in two of them, alike class shares, the published folds."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mmattn.config import DataConfig
from mmattn.data.corpora import CORPORA
from mmattn.data.corpus import Corpus
from mmattn.data.splits import (
    SPLITS,
    check_split,
    chosen_folds,
    make_split,
    split_from_json,
    split_to_json,
)
from mmattn.data.stream import make_stream, pack_streams
from mmattn.errors import UserError


def corpus_of(counts: dict[str, tuple[int, ...]]) -> Corpus:
    """Clips of a frame; `counts` has each speaker's clips of every class."""
    clips = sorted(
        (f"{speaker}-{label}-{number}", speaker, label)
        for speaker, of_class in counts.items()
        for label, count in enumerate(of_class)
        for number in range(count)
    )
    streams = pack_streams([make_stream(np.ones((1, 1), np.float32), np.zeros(1))] * len(clips))
    return Corpus(
        description="test",
        names=tuple(name for name, _, _ in clips),
        speakers=np.array([speaker for _, speaker, _ in clips]),
        labels=np.array([label for _, _, label in clips], np.int32),
        class_names=tuple("abcdefgh"[: len(next(iter(counts.values())))]),
        streams={"audio": streams},
    )


@pytest.fixture
def twelve() -> Corpus:
    """12 RAVDESS speakers with four clips of three classes."""
    return corpus_of({f"ravdess-{actor:02d}": (4, 4, 4) for actor in range(1, 13)})


def speakers(corpus: Corpus, split, name: str) -> set:
    return set(corpus.speakers[split.clips[name]].tolist())


@pytest.mark.parametrize("seed", range(5))
def test_no_speaker_is_on_two_sides_and_no_clip_is_lost(twelve, seed):
    split = make_split(twelve, DataConfig(validation=0.2, test=0.25), seed)
    found = [speakers(twelve, split, name) for name in SPLITS]
    assert [len(names) for names in found] == [7, 2, 3]
    assert len(set.union(*found)) == 12
    together = np.sort(np.concatenate([split.clips[name] for name in SPLITS]))
    assert together.tolist() == list(range(len(twelve)))


def test_the_seed_decides_and_nothing_else(twelve):
    first, again = (split_to_json(make_split(twelve, DataConfig(), 3), twelve) for _ in range(2))
    others = [split_to_json(make_split(twelve, DataConfig(), seed), twelve) for seed in range(3)]
    assert first == again
    assert any(other["test"] != first["test"] for other in others)


def test_class_shares_are_alike_on_every_side():
    """Half of the speakers have mostly the one class, half mostly the other."""
    corpus = corpus_of({f"s{n:02d}": (9, 1) if n % 2 else (1, 9) for n in range(24)})
    for seed in range(5):
        split = make_split(corpus, DataConfig(validation=0.25, test=0.25), seed)
        for name in SPLITS:
            assert corpus.labels[split.clips[name]].mean() == pytest.approx(0.5)


def test_too_few_speakers():
    corpus = corpus_of({"s1": (2, 2), "s2": (2, 2)})
    with pytest.raises(
        UserError,
        match=r"2 speakers, expected 3 or more .*an identical file.*as one\): 1 for test",
    ):
        make_split(corpus, DataConfig(), 0)


@pytest.mark.parametrize(("option", "share"), [("test", 0.0), ("validation", 1.0)])
def test_shares_outside_0_to_1(option, share):
    with pytest.raises(UserError, match=rf"--data.{option} {share}: expected above 0, below 1"):
        DataConfig(**{option: share}).check()


def test_every_fold_tests_its_speakers(twelve):
    data = DataConfig(folds="ravdess", validation=0.25)
    assert chosen_folds(twelve, data) == [0, 1, 2]
    tested = set()
    for fold in chosen_folds(twelve, data):
        split = make_split(twelve, data, 0, fold)
        assert speakers(twelve, split, "test") == set(CORPORA["ravdess"].FOLDS[fold])
        assert len(speakers(twelve, split, "validation")) == 2
        assert split.fold == fold
        tested |= set(split.test.tolist())
    assert len(tested) == len(twelve)


def test_folds_of_a_file(twelve, tmp_path):
    path = tmp_path / "folds.json"
    path.write_text(json.dumps({"test_speakers": [["ravdess-02", "ravdess-07"], ["ravdess-30"]]}))
    data = DataConfig(folds=str(path))
    assert chosen_folds(twelve, data) == [0]
    split = make_split(twelve, data, 0, 0)
    assert speakers(twelve, split, "test") == {"ravdess-02", "ravdess-07"}
    for fold in (1, 2, -1):
        with pytest.raises(UserError, match=rf"fold {fold}: folds of .* with test clips: 0$"):
            chosen_folds(twelve, replace(data, fold=fold))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "found JSONDecodeError"),
        ("[]", "found TypeError"),
        ("{}", "found KeyError"),
        ('{"test_speakers": 1}', "found TypeError"),
        ('{"test_speakers": ["ravdess-01"]}', "expected a list of lists of text"),
        ('{"test_speakers": [[1, 2]]}', "expected a list of lists of text"),
        ('{"test_speakers": [["a"], ["b", "a"]]}', "expected each speaker once, not a"),
    ],
)
def test_folds_that_cannot_be_read(twelve, tmp_path, text, reason):
    path = tmp_path / "folds.json"
    path.write_text(text)
    with pytest.raises(UserError, match=reason):
        chosen_folds(twelve, DataConfig(folds=str(path)))
    with pytest.raises(UserError, match=r"ravdess, crema-d, a column \(.* no such file"):
        chosen_folds(twelve, DataConfig(folds=str(tmp_path / "missing.json")))


def test_which_folds_are_chosen(twelve):
    assert chosen_folds(twelve, DataConfig()) == [None]
    assert chosen_folds(twelve, DataConfig(folds="ravdess", fold=1)) == [1]
    with pytest.raises(UserError, match="no clip is in any fold of 'crema-d'"):
        chosen_folds(twelve, DataConfig(folds="crema-d"))
    with pytest.raises(UserError, match=r"--data.fold 1 needs --data.folds"):
        chosen_folds(twelve, DataConfig(fold=1))


def test_too_few_speakers_outside_a_fold(twelve):
    kept = np.flatnonzero(twelve.speakers <= "ravdess-05")
    few = replace(
        twelve,
        names=tuple(twelve.names[clip] for clip in kept),
        speakers=twelve.speakers[kept],
        labels=twelve.labels[kept],
        streams={"audio": twelve.streams["audio"].select(kept)},
    )
    with pytest.raises(UserError, match=r"1 speaker, expected 2 or more .*: 1 for validation"):
        make_split(few, DataConfig(folds="ravdess"), 0, 0)


def test_the_leaking_split_says_so(twelve):
    data = DataConfig(split="leaky-clips", validation=0.25, test=0.25)
    split = make_split(twelve, data, 0)
    assert split.leaking
    assert "LEAKS SPEAKERS" in split.description
    assert speakers(twelve, split, "train") & speakers(twelve, split, "test")
    for name, share in zip(SPLITS, (24, 12, 12), strict=True):
        assert np.bincount(twelve.labels[split.clips[name]]).tolist() == [share] * 3
    with pytest.raises(UserError, match=r"leaky-clips cannot have --data.folds"):
        make_split(twelve, replace(data, folds="ravdess"), 0)


def test_a_speaker_on_two_sides_is_named(twelve):
    split = make_split(twelve, DataConfig(), 0)
    moved = split.test[:1]
    leaked = replace(split, train=np.append(split.train, moved), test=split.test[1:])
    with pytest.raises(UserError, match=r"^speaker ravdess-.*, expected in one split$") as error:
        check_split(leaked, twelve)
    assert str(twelve.speakers[moved[0]]) in str(error.value)


def test_a_clip_on_two_sides_is_an_error_even_when_speakers_leak(twelve):
    split = make_split(twelve, DataConfig(split="leaky-clips"), 0)
    with pytest.raises(UserError, match=r"clip ravdess-.* is in validation .* and in test"):
        check_split(replace(split, test=split.validation), twelve)


@pytest.mark.parametrize("name", SPLITS)
def test_an_empty_split(twelve, name):
    split = make_split(twelve, DataConfig(), 0)
    with pytest.raises(UserError, match=f"no {name} clips"):
        check_split(replace(split, **{name: np.array([], np.int64)}), twelve)


def test_a_class_without_training_clips():
    corpus = corpus_of({f"s{n}": (2, 2, 0) for n in range(6)})
    with pytest.raises(UserError, match="no training clip of the class c among 16"):
        make_split(corpus, DataConfig(), 0)


@pytest.mark.parametrize("data", [DataConfig(), DataConfig(split="leaky-clips")])
def test_a_written_split_reads_back(twelve, data):
    split = make_split(twelve, data, 0)
    document = json.loads(json.dumps(split_to_json(split, twelve)))
    again = split_from_json(document, twelve)
    for name in SPLITS:
        np.testing.assert_array_equal(again.clips[name], split.clips[name])
        assert document[name]["speakers"] == sorted(speakers(twelve, split, name))
    rest = (split.description, split.fold, split.leaking)
    assert (again.description, again.fold, again.leaking) == rest


def test_a_written_split_is_checked_when_read(twelve):
    document = split_to_json(make_split(twelve, DataConfig(), 0), twelve)
    document["train"]["clips"].append(document["test"]["clips"].pop())
    with pytest.raises(UserError, match=r"speaker ravdess-.* is in train \(.*\) and in test \("):
        split_from_json(document, twelve)
    relabelled = replace(twelve, labels=np.roll(twelve.labels, 1))
    with pytest.raises(UserError, match=r"-0: expected its label when the run began, \w+, found"):
        split_from_json(split_to_json(make_split(twelve, DataConfig(), 0), twelve), relabelled)
    document["test"]["clips"].append("gone")
    with pytest.raises(UserError, match=r"1 of 24 test clips .* not in the corpus: gone"):
        split_from_json(document, twelve)


def with_columns(corpus: Corpus, **columns) -> Corpus:
    return replace(corpus, columns={name: np.array(cells) for name, cells in columns.items()})


@pytest.fixture
def told(twelve) -> Corpus:
    """By actor: 1 to 6 train, 7 and 8 validate, 9 and 10 test, the rest is in no split."""
    number = [int(speaker[-2:]) for speaker in twelve.speakers]
    said = [*7 * ["train"], *2 * ["validation"], *2 * ["test"], "", ""]
    return with_columns(twelve, split=[said[n] for n in number])


def test_the_split_of_a_column(told):
    data = DataConfig(split="column")
    split = make_split(told, data, 0)
    sizes = [len(speakers(told, split, name)) for name in SPLITS]
    assert sizes == [6, 2, 2] and not split.leaking
    assert split.description == "the column split (24 clips without one left out)"
    for name in SPLITS:
        assert set(told.columns["split"][split.clips[name]]) == {name}
    whole = np.where(told.columns["split"] == "validation", "train", told.columns["split"])
    drawn = make_split(with_columns(told, split=whole), data, 0)
    assert [len(speakers(told, drawn, name)) for name in SPLITS] == [7, 1, 2]
    np.testing.assert_array_equal(drawn.test, split.test)
    no_test = np.where(told.columns["split"] == "test", "", told.columns["split"])
    with pytest.raises(UserError, match="the split has no test clips"):
        make_split(with_columns(told, split=no_test), data, 0)
    one = with_columns(told, half=np.full(len(told), "a"))
    with pytest.raises(UserError, match=r"no train clips .*; expected three or more values of its"):
        make_split(one, DataConfig(folds="half"), 0, fold=0)
    with pytest.raises(UserError, match="expected a column split with values"):
        make_split(with_columns(told), data, 0)
    with pytest.raises(UserError, match=r"--data.split column cannot have --data.folds"):
        make_split(told, replace(data, folds="ravdess"), 0, 0)


def test_a_column_that_parts_a_speaker(told):
    said = told.columns["split"].copy()
    said[0] = "test"
    parted, data = with_columns(told, split=said), DataConfig(split="column")
    parted = replace(parted, lines=np.arange(len(told)) + 2)
    with pytest.raises(UserError) as error:
        make_split(parted, data, 0)
    assert str(error.value) == (
        "speaker ravdess-01 is in train (ravdess-01-0-1, line 3) and in test (ravdess-01-0-0, "
        "line 2), expected in one split"
    )
    split = make_split(parted, replace(data, disjoint=()), 0)
    assert split.leaking is True and "LEAKS SPEAKERS" in split.description


def test_folds_of_a_column(twelve):
    """In natural order; a clip without a value tests in none."""
    take = [["10", "9", "", "9b", "09"][clip % 5] for clip in range(len(twelve))]
    corpus, data = with_columns(twelve, take=take), DataConfig(folds="take", disjoint=("take",))
    assert chosen_folds(corpus, data) == [0, 1, 2, 3]
    for fold, value in enumerate(("09", "9", "9b", "10")):
        split = make_split(corpus, data, 0, fold)
        assert set(corpus.columns["take"][split.test]) == {value}
        assert split.leaking is True
    one_out = DataConfig(folds="speaker")
    corpus = with_columns(twelve, speaker=[name[-2:] for name in twelve.speakers])
    assert chosen_folds(corpus, one_out) == list(range(12))
    split = make_split(corpus, one_out, 0, 3)
    assert speakers(corpus, split, "test") == {"ravdess-04"} and not split.leaking


@pytest.mark.parametrize("seed", range(5))
def test_clips_that_share_a_value_or_a_file_stay_together(twelve, seed):
    """Couples of speakers read the same script; one clip of 1 is in a file of 12's."""
    script = [str((int(speaker[-2:]) - 1) // 2) for speaker in twelve.speakers]
    contents = np.arange(len(twelve))
    contents[-1] = 0
    corpus = replace(with_columns(twelve, script=script), contents={"audio": contents})
    data = DataConfig(disjoint=("speaker", "script"), test=0.2, validation=0.2)
    split = make_split(corpus, data, seed)
    scripts = [set(corpus.columns["script"][split.clips[name]]) for name in SPLITS]
    assert sum(map(len, scripts)) == 6 and len(set.union(*scripts)) == 6
    assert any({"0", "5"} <= names for names in scripts)
    assert split.description == f"groups of clips, seed {seed}"
    assert sum(len(split.clips[name]) for name in SPLITS) == len(corpus)


def test_a_file_on_two_sides_of_a_given_split_is_named(told):
    contents = np.arange(len(told))
    contents[-30] = 0  # of a speaker who tests
    with pytest.raises(UserError, match=r"audio file ravdess-01-0-0 is in train .* and in test"):
        make_split(replace(told, contents={"audio": contents}), DataConfig(split="column"), 0)


def test_a_given_split_parts_no_value_of_another_column(told):
    room = np.arange(len(told)) % 2
    corpus = replace(told, columns={**told.columns, "room": room.astype(str)})
    with pytest.raises(UserError, match=r"room 0 is in train .* and in validation"):
        make_split(corpus, DataConfig(split="column", disjoint=("speaker", "room")), 0)


def test_unknown_speakers_are_flagged_where_the_split_is_given_and_no_split_is_drawn(told):
    unknown = np.where(told.speakers == "ravdess-03", "", told.speakers)
    corpus = replace(told, speakers=unknown)
    for given, fold in ((DataConfig(split="column"), None), (DataConfig(folds="ravdess"), 2)):
        split = make_split(corpus, given, 0, fold)
        assert split.leaking == "unknown" and "SPEAKERS UNKNOWN" in split.description
        again = split_from_json(json.loads(json.dumps(split_to_json(split, corpus))), corpus)
        assert again.leaking == "unknown"
    named = replace(corpus, lines=np.arange(2, 146))
    first = np.flatnonzero(unknown == "")[0]
    place = rf"\(the first is .*, line {first + 2}\)"
    words = f"12 of 144 clips have no speaker {place}, so they cannot be"
    with pytest.raises(UserError, match=words):
        make_split(named, DataConfig(), 0)
    with pytest.raises(UserError, match=r"--ensemble-size 99: expected at most .*, the speakers"):
        make_split(told, DataConfig(), 0, ensemble_size=99)
    with pytest.raises(
        UserError, match=r"--data.disjoint session: expected a column: split, speaker"
    ):
        make_split(corpus, DataConfig(disjoint=("session",)), 0)


def test_soft_labels_are_balanced_by_their_mass():
    """Half of the speakers are mostly the one class to their raters, as all are by label."""
    corpus = corpus_of({f"s{n:02d}": (4, 0) for n in range(24)})
    high = np.array([int(speaker[1:]) % 2 for speaker in corpus.speakers])
    mass = np.where(high, 0.9, 0.1).astype(np.float32)
    soft = replace(corpus, targets=np.stack([mass, 1 - mass], axis=1))
    split = make_split(soft, DataConfig(validation=0.25, test=0.25), 0)
    for name in SPLITS:
        assert mass[split.clips[name]].mean() == pytest.approx(0.5)
    with pytest.raises(UserError, match="no training clip of the class b"):
        make_split(corpus, DataConfig(), 0)
