"""Records of what made the features: read from text, and told apart in words."""

import copy
import json

import pytest

from mmattn.data.extractor import difference, parse_extractor

BOTH = {
    "audio": {"name": "log-mel", "version": 1, "settings": {"hop": 0.02, "bands": 64}},
    "video": {"name": "face-mesh", "version": 2, "settings": {"rate": 15.0, "model": None}},
}


def but(modality: str, **changes) -> dict:
    """The records with one changed."""
    records = copy.deepcopy(BOTH)
    records[modality] |= changes
    return records


NAMELESS = "an unnamed one"
CASES = {
    "nothing": (BOTH, copy.deepcopy(BOTH), ""),
    "nothing known": ({}, {}, ""),
    "version": (
        but("video", version=1),
        BOTH,
        "video: face-mesh version 1 instead of face-mesh version 2",
    ),
    "name": (
        but("video", name="dlib"),
        BOTH,
        "video: dlib version 2 instead of face-mesh version 2",
    ),
    "a setting": (
        but("audio", settings={"hop": 0.01, "bands": 64}),
        BOTH,
        "audio hop 0.01 instead of 0.02",
    ),
    "a copy": (
        BOTH,
        BOTH | {"audio__noise_20": BOTH["audio"]},
        "audio__noise_20: no copy instead of log-mel version 1",
    ),
    "several": (
        but("audio", settings={"bands": 80, "low": "a"}),
        but("video", version=3),
        'audio hop nothing instead of 0.02, audio bands 80 instead of 64, audio low "a" instead of '
        "nothing, video: face-mesh version 2 instead of face-mesh version 3",
    ),
    "a setting that is null or not there": (
        but("video", settings={"rate": 15.0}),
        BOTH,
        "video model nothing instead of null",
    ),
    "found unknown": (
        {"video": BOTH["video"]},
        BOTH,
        f"audio: {NAMELESS} instead of log-mel version 1",
    ),
    "expected unknown": (
        {"video": BOTH["video"]},
        {},
        f"video: face-mesh version 2 instead of {NAMELESS}",
    ),
    "a whole number and a tuple": (
        but("video", settings={"rate": 15, "model": None, "box": (1, 2)}),
        but("video", settings={"rate": 15.0, "model": None, "box": [1, 2]}),
        "",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_difference_in_words(case):
    found, expected, words = CASES[case]
    assert difference(found, expected) == words
    assert bool(difference(expected, found)) == bool(words)


def test_a_record_comes_back_from_its_text():
    assert parse_extractor(json.dumps(BOTH)) == BOTH
    assert parse_extractor('{"audio": {"name": "é", "version": 0, "settings": {}}}') == {
        "audio": {"name": "é", "version": 0, "settings": {}}
    }
    assert parse_extractor(json.dumps({"text": BOTH["audio"]})) == {"text": BOTH["audio"]}
    assert parse_extractor("{}") == {}


BAD = {
    "no JSON": ("{'audio': 1}", "Expecting property name"),
    "cut short": (json.dumps(BOTH)[:-1], "Expecting"),
    "a list": ("[1]", r"expected a JSON object, found \[1\]"),
    "another modality": ('{"text": {}}', r"settings \(object\) of text, found \{\}"),
    "no record": ('{"audio": "log-mel"}', r'settings \(object\) of audio, found "log-mel"'),
    "no number": (json.dumps(but("video", settings={"a": float("nan")})), "not JSON compliant"),
    "many levels": (100_000 * "[", "too many levels"),
    "no settings": ('{"audio": {"name": "a", "version": 1}}', "of audio, found"),
    **{
        f"{key} {value!r}": (json.dumps(but("video", **{key: value})), "of video, found")
        for key, value in (
            ("name", 1),
            ("name", "\ud800"),
            ("name", "\x1b[31mred"),
            ("version", True),
            ("version", 1.0),
            ("settings", [1]),
            ("settings", {"\n": 1}),
            ("more", 1),
        )
    },
}


@pytest.mark.parametrize("case", BAD)
def test_bad_text_is_a_value_error_that_says_what_was_expected(case):
    text, reason = BAD[case]
    with pytest.raises(ValueError, match=reason):
        parse_extractor(text)
