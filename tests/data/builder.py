"""Another process that builds a cache, for test_store.py.

builder.py slow ROOT CACHE READY GO   wait with a finished pack until the file GO exists
builder.py full ROOT CACHE BYTES      no file may grow beyond BYTES, as on a full disk
"""

import resource
import sys
import time
from pathlib import Path

from mmattn.config import DataConfig
from mmattn.data import store
from mmattn.data.corpus import open_corpus
from mmattn.errors import UserError

MODALITIES = ("audio", "video")


def build_slowly(data: DataConfig, ready: str, go: str) -> None:
    pack = store._pack

    def pack_and_wait(*arguments):
        packed = pack(*arguments)
        Path(ready).touch()
        while not Path(go).exists():
            time.sleep(0.01)
        return packed

    store._pack = pack_and_wait
    assert len(open_corpus(data, MODALITIES)) == 32


def build_with_little_room(data: DataConfig, room: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), resource.RLIM_INFINITY))
    try:
        open_corpus(data, MODALITIES)
    except UserError as error:
        sys.exit(str(error))


work, root, folder, *rest = sys.argv[1:]
options = DataConfig(roots=(Path(root),), labels=("ravdess8",), cache=Path(folder))
{"slow": build_slowly, "full": build_with_little_room}[work](options, *rest)
