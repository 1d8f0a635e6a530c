"""What made the features of a clip: a record a modality, and how two of them differ.

A record is {"name": str, "version": int, "settings": {…}} of plain JSON values.
"""

import json

_UNNAMED = "one that the files do not name"


def parse_extractor(text: str) -> dict[str, dict]:
    """The records by modality from the JSON in a feature file.

    Raises ValueError with what was expected.
    """
    try:
        records = json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("too many levels of JSON") from error
    if not isinstance(records, dict):
        raise ValueError(f"expected a JSON object, found {_brief(records)}")
    for modality, record in records.items():
        if not _is_record(record):
            raise ValueError(
                f"expected name (text), version (integer) and settings (object) of {modality}, "
                f"found {_brief(record)}"
            )
    return records


def difference(found: dict[str, dict], expected: dict[str, dict]) -> str:
    """In words, what of `found` is another than in `expected`; empty where nothing is.

    >>> new = {"audio": {"name": "log-mel", "version": 1, "settings": {"hop": 0.01}}}
    >>> old = {"audio": {"name": "log-mel", "version": 1, "settings": {"hop": 0.02}}}
    >>> difference(new, old)
    'audio hop 0.01 instead of 0.02'
    """
    parts = []
    for modality in sorted(found | expected):
        parts += _differences(modality, found.get(modality), expected.get(modality))
    return ", ".join(parts)


def _differences(modality: str, found: dict | None, expected: dict | None) -> list[str]:
    if found == expected:
        return []
    if not found or not expected or found["name"] != expected["name"]:
        return [f"{modality}: {_title(found)} instead of {_title(expected)}"]
    if found["version"] != expected["version"]:
        return [f"{modality}: {_title(found)} instead of {expected['version']}"]
    # A tuple of settings is a list in a file.
    new, old = (json.loads(json.dumps(own["settings"])) for own in (found, expected))
    return [
        f"{modality} {key} {_value(new, key)} instead of {_value(old, key)}"
        for key in old | new
        if (key in new, new.get(key)) != (key in old, old.get(key))
    ]


def _title(record: dict | None) -> str:
    return f"{record['name']} version {record['version']}" if record else _UNNAMED


def _value(settings: dict, key: str) -> str:
    return json.dumps(settings[key]) if key in settings else "nothing"


def _is_record(record: object) -> bool:
    return (
        isinstance(record, dict)
        and set(record) == {"name", "version", "settings"}
        and isinstance(record["name"], str)
        and type(record["version"]) is int  # true and false are no integers
        and isinstance(record["settings"], dict)
        and all(map(str.isprintable, (record["name"], *record["settings"])))
    )


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _brief(value: object) -> str:
    return json.dumps(value)[:80]
