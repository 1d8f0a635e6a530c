"""The page of a timeline: the recording plays beside its predictions, moment by moment."""

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mmattn.files import write_text
from mmattn.report.document import document, facts, paragraphs

FOOT = (
    "<p>The recording is played from its own file by a relative path: keep both files where they "
    "are. Nothing is sent anywhere.</p>"
)


def write_timeline_page(
    path: Path, timeline: Mapping[str, Any], recording: Path, command: str
) -> None:
    """Write the page of a timeline, atomically.

    Args:
        path: of the page.
        timeline: see `predict_recording`, with its settings.
        recording: the file to play.
        command: makes the page again.
    """
    made = timeline["settings"]
    relative = os.path.relpath(recording.resolve(), path.parent.resolve())
    about = {
        "Recording": recording.name,
        "Run": f"{made['run']}, {made['checkpoint']} checkpoint",
        "Windows": f"{made['window']:g} s, every {made['hop']:g} s",
    }
    payload = {
        "source": quote(Path(relative).as_posix()),
        "hop": made["hop"],
        "seconds": timeline["seconds"],
        "classes": timeline["classes"],
        "rows": _rows(timeline),
    }
    bar = "Bar above: this person speaks. " if timeline["people"] else ""
    content = f"""
<video id="player" controls preload="metadata"></video>
<p id="trouble" class="note" role="alert" hidden></p>
<div class="controls">
<label>Show <select id="span"></select></label>
<label class="check"><input id="plays" type="checkbox" checked> play at a click</label>
</div>
<div id="people"></div>
<p class="hint">Strong colour: probable. {bar}Hatched: no prediction, with
a reason. Click a moment to play it; with the keyboard, the arrow keys move by one window, Page Up
and Page Down by ten. A window counts for the time around its centre.</p>
"""
    sections = {
        "timeline": ("Timeline", content),
        "passages": ("Passages", '<div id="list"></div>'),
    }
    notes = [f"Note: {note}." for note in timeline["notes"]]
    foot = f"<p>Made by <code>{escape(command)}</code>.</p>{FOOT}"
    opening = facts(about) + paragraphs([*timeline["trust"], *notes])
    page = document(
        f"{recording.name}: timeline", opening, sections, foot, payload, name="timeline"
    )
    write_text(path, page)


def _rows(timeline: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The windows of each person, and of the time without a face, as lists."""
    people = timeline["people"]
    windows: dict[int | None, list[Mapping[str, Any]]] = {}
    for row in timeline["windows"]:
        windows.setdefault(row["person"], []).append(row)
    found = []
    for number in sorted(windows, key=lambda one: (one is None, one)):
        own = windows[number]
        name = f"Person {number}" if number else "No face" if people else "Recording"
        found.append(
            {
                "name": name,
                "portrait": people[number - 1]["portrait"] if number else None,
                "middles": [round((row["start"] + row["end"]) / 2, 3) for row in own],
                "probabilities": [
                    row["probabilities"] and [round(share, 3) for share in row["probabilities"]]
                    for row in own
                ],
                "speaking": [row["speaking"] for row in own],
                "gaps": [row["gap"] for row in own],
            }
        )
    return found
