"""Hidden states of Whisper's encoder."""

import mmap
import os
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from mmattn.data.stream import Stream, make_stream
from mmattn.errors import UserError
from mmattn.media import explain_missing_library
from mmattn.media.audio import band_powers, check_lasts, in_windows, triangles
from mmattn.media.models import SHA256, WHISPER, model_file, sha256
from mmattn.media.sound import RATE

TINY = WHISPER.removeprefix("whisper-")
FILES = ["model.bin", "config.json", "preprocessor_config.json"]
WORDS = 8  # of the decoder's vocabulary, and rows of its matrices
STATE = 0.02  # seconds per state
WINDOW, HOP = 400, 160  # samples of a mel frame; two frames give one state


@dataclass(frozen=True)
class Whisper:
    """States of Whisper's encoder (Radford et al. 2022), every 20 ms, by CTranslate2.

    States of an earlier layer come from an encoder truncated there, and pass through the final
    layer norm. Up to 30 s, the states see all of the audio and nothing else: it is not padded to
    30 s, as for transcription. Longer audio is cut into windows.
    """

    model: str  # tiny.en, a folder or a name on the Hugging Face Hub
    models: Path = field(repr=False)  # folder of the model files
    layer: int = -1  # 1 is the first, -1 the last

    def record(self) -> dict:
        """What a feature file records of its audio features. Raises UserError as `start`."""
        folder = self._folder()
        given = Path(self.model).expanduser()
        name = folder.resolve().name if given == folder else self.model
        weights = sha256(folder / "model.bin")
        return {
            "name": "whisper",
            "version": 1,
            "settings": {"whisper_model": name, "sha256": weights, "whisper_layer": self.layer},
        }

    def start(self) -> Callable[[np.ndarray, int], Stream]:
        """Load the encoder: states [T, F] of samples [n] at 16 kHz, T is n // 320, and their times.

        A state's time (s) is the centre of its 20 ms. F is 384 for tiny, 512 for base, … Raises
        UserError if CTranslate2 or a model file is missing, or is no Whisper with that layer; the
        returned function raises BadMedia if the audio is shorter than 20 ms.
        """
        # Weights packed for MKL take 22 MB more for tiny.en and make it no faster.
        os.environ.setdefault("CT2_PACKED_GEMM", "0")
        with explain_missing_library():  # it takes half a second to import
            from ctranslate2 import StorageView, models
        folder = self._folder()
        try:  # clips are extracted in parallel, each on a core
            # A model given to CTranslate2 in memory would stay there, next to its own copy.
            with TemporaryDirectory() as cut:
                self._write_cut(folder, Path(cut))
                options = {"compute_type": "float32", "inter_threads": 1, "intra_threads": 1}
                network = models.Whisper(cut, **options)
        except UserError:
            raise
        except (RuntimeError, ValueError, struct.error) as error:  # ValueError: an empty file
            raise UserError(
                f"--whisper-model {self.model}: not a Whisper model: {error}"
            ) from error

        def encode(samples: np.ndarray, rate: int) -> Stream:
            check_lasts(samples, rate, STATE)
            frames = StorageView.from_array(log_mel(samples, network.n_mels)[None])
            states = np.array(network.encode(frames, to_cpu=True))[0]
            return make_stream(states, (np.arange(len(states)) + 0.5) * STATE)

        return in_windows(encode)

    def _write_cut(self, folder: Path, to: Path) -> None:
        """Write the files that CTranslate2 reads, without most of the unused weights."""
        weights, *others = FILES
        for name in others:
            if (folder / name).exists():
                shutil.copy(folder / name, to)
        (to / "vocabulary.txt").write_text("".join(f"{number}\n" for number in range(WORDS)))
        with open(folder / weights, "rb") as file, open(to / weights, "wb") as cut:
            # Reading it would leave 75 MB in the heap, which is not always returned to the system.
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            cut.writelines(self._cut(content))

    def _cut(self, content: memoryview) -> list[bytes | memoryview]:
        """The content of model.bin without the encoder layers after the requested one, and without
        the decoder, except WORDS rows of its first layer and of its vocabulary, which CTranslate2
        requires but does not use.

        CTranslate2 counts the layers that it finds. The file has 4 bytes of version, a name, 4
        bytes of revision, the number of variables, the variables, and aliases of variables.
        """
        place = 4 + 2 + struct.unpack_from("<H", content, 4)[0] + 4
        (count,) = struct.unpack_from("<I", content, place)
        variables, at = [], place + 4  # of each, its layer in the encoder (0: none) and its bytes
        for _ in range(count):
            (length,) = struct.unpack_from("<H", content, at)
            shape = at + 2 + length
            size = shape + 1 + 4 * content[shape] + 1  # after the rank, the shape and the type
            begin = size + 4
            end = begin + struct.unpack_from("<I", content, size)[0]
            part, name = content[at:end], bytes(content[at + 2 : shape])
            if name.startswith(b"decoder/") and content[shape]:  # not a single number
                (rows,) = struct.unpack_from("<I", content, shape + 1)
                kept = min(rows, WORDS) * ((end - begin) // rows)
                cut = struct.pack("<I", min(rows, WORDS)), content[shape + 5 : size]
                data = struct.pack("<I", kept), content[begin : begin + kept]
                part = b"".join([content[at : shape + 1], *cut, *data])
            layer = re.match(rb"(encoder|decoder)/layer_(\d+)/", name)
            if not layer or layer[1] == b"encoder":
                variables.append((int(layer[2]) + 1 if layer else 0, part))
            elif int(layer[2]) == 0:
                variables.append((0, part))
            at = end
        layers = max((number for number, _ in variables), default=0)
        last = self.layer if self.layer > 0 else layers + 1 + self.layer
        if not 0 < last <= layers:
            raise UserError(
                f"--whisper-layer {self.layer}: expected 1 to {layers}, the layers of the encoder "
                f"of {self.model}, or -{layers} to -1"
            )
        kept = [variable for number, variable in variables if number <= last]
        return [content[:place], struct.pack("<I", len(kept)), *kept, content[at:]]

    def _folder(self) -> Path:
        if self.model == TINY:
            for name in SHA256:
                if name.startswith(f"{WHISPER}/"):
                    model_file(name, self.models)
            return self.models.expanduser() / WHISPER
        folder = Path(self.model).expanduser()
        if not folder.is_dir():
            return _fetch(self.model)
        if not (folder / "model.bin").is_file():
            raise UserError(
                f"--whisper-model {self.model}: expected model.bin in the folder, a Whisper in "
                "CTranslate2 format (ct2-transformers-converter makes one)"
            )
        return folder


def _fetch(name: str) -> Path:
    """The folder of a model on the Hugging Face Hub, by its name there or Whisper's."""
    repository = name if "/" in name else f"Systran/faster-whisper-{name}"
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, allow_patterns=FILES))
    except ImportError as error:
        reason = f"{error}: pip install huggingface_hub"
    except (OSError, ValueError) as error:  # no network, no such name, an invalid name
        reason = str(error).partition("\n")[0]
    raise UserError(
        f"--whisper-model {name}: expected {TINY}, a folder, or a name on the Hugging Face Hub; "
        f"{repository} cannot be downloaded: {reason}"
    )


def log_mel(samples: np.ndarray, bands: int) -> np.ndarray:
    """Whisper's log-mel input for samples [n]: [bands, 2 (n // 320)] float32.

    Decimal logarithm of the band power in windows of 25 ms, every 10 ms; values x are clipped at 8
    below the highest, then scaled to (x + 4) / 4.
    """
    padded = np.pad(samples, WINDOW // 2, mode="reflect")
    powers = band_powers(padded, WINDOW, HOP, slaney_filters(bands))[: len(samples) // 320 * 2]
    logs = np.log10(np.maximum(powers, 1e-10))
    return ((np.maximum(logs, logs.max() - 8) + 4) / 4).T.astype(np.float32, order="C")


@lru_cache
def slaney_filters(bands: int) -> np.ndarray:
    """Weights [bands, 201] of the mel filters of Slaney (1998) from 0 to 8 kHz, each of area 1.

    His mel is linear in frequency up to 1 kHz, 200/3 Hz each, and logarithmic above.
    """
    step = np.log(6.4) / 27
    mels = np.linspace(0, 15 + np.log(8) / step, bands + 2)
    corners = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(step * (mels - 15)))
    return triangles(corners, WINDOW, RATE) * (2 / (corners[2:] - corners[:-2]))[:, None]
