"""The extractors that made a clip's features, a record for each modality, and how two differ.

A record is {"name": str, "version": int, "settings": {…}} of plain JSON values.
"""

import json

from mmattn.config import VARIANT


def parse_extractor(text: str) -> dict[str, dict]:
    """The records by modality from the JSON in a feature file.

    Raises ValueError with what was expected.
    """
    try:
        records = json.loads(text)
        json.dumps(records, allow_nan=False)
    except RecursionError as error:
        raise ValueError("too many levels of JSON") from error
    if not isinstance(records, dict):
        raise ValueError(f"expected a JSON object, found {json.dumps(records)[:80]}")
    for modality, record in records.items():
        match record:
            case {"name": str(name), "version": int(version), "settings": dict(settings)} if (
                len(record) == 3
                and not isinstance(version, bool)
                and all(map(str.isprintable, (name, *settings)))
            ):
                continue
        raise ValueError(
            f"expected name (text), version (integer) and settings (object) of {modality}, "
            f"found {json.dumps(record)[:80]}"
        )
    return records


def difference(
    found: dict[str, dict], expected: dict[str, dict], *, none: str = "an unnamed one"
) -> str:
    """In words, how `found` differs from `expected`; empty if it does not. `none` stands for the
    extractor of a modality that one of them lacks.

    >>> new = {"audio": {"name": "log-mel", "version": 1, "settings": {"hop": 0.01}}}
    >>> old = {"audio": {"name": "log-mel", "version": 1, "settings": {"hop": 0.02}}}
    >>> difference(new, old)
    'audio hop 0.01 instead of 0.02'
    """
    parts = []
    for modality in sorted(found | expected):
        lacks = "no copy" if VARIANT in modality else none
        (title, new), (other, old) = (
            _describe(of.get(modality), lacks) for of in (found, expected)
        )
        if title != other:
            parts.append(f"{modality}: {title} instead of {other}")
            continue
        for key in old | new:
            values = [json.dumps(of[key]) if key in of else "nothing" for of in (new, old)]
            if key not in old or key not in new or new[key] != old[key]:
                parts.append(f"{modality} {key} {values[0]} instead of {values[1]}")
    return ", ".join(parts)


def _describe(record: dict | None, none: str) -> tuple[str, dict]:
    """Name and version in words, or `none`, and the settings as they are read from a file."""
    if not record:
        return none, {}
    settings = json.loads(json.dumps(record["settings"]))  # a tuple is a list in a file
    return f"{record['name']} version {record['version']}", settings
