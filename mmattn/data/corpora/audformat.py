"""Databases in audformat, the format of audEERING's corpora (extra [audformat])."""

from pathlib import Path

from mmattn.data.corpora.folders import Row
from mmattn.errors import UserError


def read_database(root: Path) -> tuple[list[Row], list[tuple[str, str]]]:
    """A row for each segment or file with an `emotion`, and files without one, with the reason.

    All other schemes, and the values that their labels hold (e.g. a speaker's `gender`), become
    columns. UserError if the library or the scheme is missing.
    """
    try:
        import audformat
    except ModuleNotFoundError as error:
        raise UserError("--audformat needs a library: pip install 'mmattn[audformat]'") from error
    database = audformat.Database.load(str(root))
    if "emotion" not in database.schemes:
        raise UserError(f"{root}: no scheme 'emotion', there are: {', '.join(database.schemes)}")
    labels = [scheme.labels for scheme in database.schemes.values()]
    about = [one for of in labels if isinstance(of, dict) for one in of.values()]
    fields = [name for one in about if isinstance(one, dict) for name in one]
    others = dict.fromkeys((*database.schemes, *fields))
    del others["emotion"]
    table = database.get("emotion", list(others)).reset_index()
    for bound in {"start", "end"} & set(table):
        table[bound] = table[bound].dt.total_seconds()
    rows = table.astype(object).where(table.notna(), "").astype(str).to_dict("records")
    for row in rows:
        if (row.get("start"), row.get("end")) == ("0.0", ""):  # the whole file
            row["start"] = ""
    left_out = [(row["file"], "no emotion") for row in rows if not row["emotion"]]
    return [row for row in rows if row["emotion"]], left_out
