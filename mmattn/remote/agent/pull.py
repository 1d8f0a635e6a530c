"""Brings what is in a bucket to this machine, in the run's venv; may be started again at any time.

`pull JOB URI`: a run's results, before its training goes on here. `pull JOB URI --data FOLDER`: all
files under a URI.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .bucket import TROUBLE, Bucket, Damaged, in_parallel, is_inside, make_client, name_of
from .push import TAKEN


def main() -> dict:
    """Bring it; returns the number of `files` that it looked for, and their `bytes`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    parser.add_argument("uri")
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    bucket, folder = Bucket(options.uri, make_client()), options.job.resolve()
    try:
        return pull_data(bucket, options.data) if options.data else pull(folder, bucket)
    except TROUBLE as error:
        sys.exit(f"pull {options.uri}: {error}")


def pull(folder: Path, bucket: Bucket) -> dict:
    """The results, and the job's logs, once: what is made here is newer. A file here stays."""
    found = None if (folder / TAKEN).exists() else bucket.manifest()
    files = found["files"] if found else []
    files = [file for file in files if file["path"].startswith("run/") or file["growing"]]
    paths = {name_of(file): folder.parent / file["path"] for file in files}
    in_parallel(
        lambda name: bucket.save(name, paths[name], sha256=name.rpartition("@")[2]),
        [name for name, path in paths.items() if not path.exists()],
    )
    (folder / TAKEN).touch()
    return {"files": len(files), "bytes": sum(file["size"] for file in files)}


def pull_data(bucket: Bucket, folder: Path) -> dict:
    """All files under the URI; one with the object's size and time is not brought again."""
    files = {name: one for name, one in bucket.list().items() if not name.endswith("/")}
    bad = [name for name in files if not is_inside(name)]
    if bad or not files:
        raise Damaged(f"expected paths of files, found {bad[0] if bad else 'nothing'!r}")

    def is_missing(name: str) -> bool:
        path, one = folder / name, files[name]
        told = one["Size"], int(one["LastModified"].timestamp())
        return not path.is_file() or (path.stat().st_size, int(path.stat().st_mtime)) != told

    in_parallel(lambda name: bucket.save(name, folder / name), filter(is_missing, files))
    return {"files": len(files), "bytes": sum(one["Size"] for one in files.values())}
