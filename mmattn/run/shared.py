"""A model file: a run in one .npz to share, with all that a prediction needs and no pickle.

Each array stacks those of all networks; `about` is the JSON of an `About`.
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dacite
import numpy as np

from mmattn.config import DataConfig, ExperimentConfig, ModelConfig, config_from_json
from mmattn.data.extractor import parse_extractor
from mmattn.errors import UserError
from mmattn.files import write_bytes
from mmattn.train.checkpoints import Exported, by_name

if TYPE_CHECKING:
    from mmattn.run.run import Run

FORMAT = 1
MODEL, CARD = "model.npz", "CARD.md"  # what `mmattn card` writes to a folder
STARTER = "starter"  # the folder of the model that comes with the package


@dataclass(frozen=True)
class Member:
    """One network."""

    name: str
    temperature: float | None


@dataclass(frozen=True)
class About:
    """The content of a model file besides the arrays."""

    format: int
    config: dict
    class_names: list[str]
    widths: dict[str, int]
    extractor: dict[str, dict]
    networks: list[Member]
    trust: list[str]

    def check(self) -> None:
        """Raise ValueError unless it allows a prediction and its text can be displayed."""
        texts = [*self.class_names, *self.widths, *self.trust, *(one.name for one in self.networks)]
        if odd := [text for text in texts if not text.isprintable()]:
            raise ValueError(f"expected printable text, found {odd[0]!r}")
        if len({one.name for one in self.networks}) < max(1, len(self.networks)):
            raise ValueError("expected one or more networks with distinct names")
        if len({*self.class_names}) < max(1, len(self.class_names)):
            raise ValueError("expected one or more classes with distinct names")
        if not all(width > 0 for width in self.widths.values()):
            raise ValueError(f"expected widths above 0, found {self.widths}")
        if not all(one.temperature is None or one.temperature > 0 for one in self.networks):
            raise ValueError("expected temperatures above 0")
        parse_extractor(json.dumps(self.extractor))


def find_shared(path: Path) -> Path | None:
    """The model file at a path or in the folder at that path; or the package's, for `starter` if
    no such path exists; None if there is none."""
    if path == Path(STARTER) and not path.exists():
        path = Path(str(files("mmattn") / STARTER))
    if path.is_dir() and not (path / "config.json").exists():
        path /= MODEL
    return path if path.is_file() else None


def write_shared(path: Path, run: "Run", trust: Sequence[str], half: bool = False) -> None:
    """Write the model file of a run that has a folder, atomically; no path of its data is in it.

    Args:
        path: of the file.
        run: whose networks are stored.
        trust: lines on what it is and how far to trust it.
        half: store parameters, but not the normalisation, as float16.
    """
    config, data = run.config, run.config.data
    roots, folds = (Path(root.name) for root in data.roots), data.folds and Path(data.folds).name
    data = replace(data, roots=tuple(roots), folds=folds, cache=DataConfig.cache)
    members = []
    for network in run.networks:
        name = network.saved_in.relative_to(run.saved_in).as_posix()
        members.append(Member(name, network.about.get("temperature")))
    about = About(
        format=FORMAT,
        config=replace(config, data=data, out=None, resume=False).to_json(),
        class_names=[*run.class_names],
        widths=run.widths,
        extractor=run.extractor,
        networks=members,
        trust=[*trust],
    )
    each = [by_name({"state": one.weights, "normaliser": one.normaliser}) for one in run.restored()]
    arrays: dict[str, Any] = {name: np.stack([own[name] for own in each]) for name in each[0]}
    for name in arrays:
        if half and name.startswith("state.params"):
            arrays[name] = arrays[name].astype(np.float16)
    content = io.BytesIO()
    np.savez_compressed(content, about=np.array(json.dumps(asdict(about))), **arrays)
    write_bytes(path, content.getvalue())


def read_shared(path: Path) -> tuple[ExperimentConfig, tuple[str, ...], dict[str, Exported]]:
    """The config of the run in a model file, its lines on trust, and its networks by name.

    Raises UserError if it is damaged or not a model file.
    """
    try:
        archive = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        arrays = {name: np.asarray(archive[name]) for name in archive.files}
        about = _parse(arrays)
    except Exception as error:  # NumPy and zipfile raise ten kinds on damaged files
        why = f"{type(error).__name__}: {error!s:.200}"
        if "pickled" in why:  # NumPy's guess for any other file
            why = "it is no .npz file"
        raise UserError(
            f"{path}: expected a run's folder, or a model file that `mmattn card` wrote: {why}"
        ) from error
    config = config_from_json(about.config, f"{path}: its config")
    try:
        config.check()
    except UserError as error:
        raise UserError(f"{path}: its config: {error}") from error
    if missing := {*config.model.modalities} - {*about.widths}:
        raise UserError(
            f"{path}: expected the feature dimension of {', '.join(sorted(missing))}, found none"
        )
    numbers = sum(stacked[0].size for stacked in arrays.values())
    if (most := _most_numbers(config.model, about.widths)) > numbers:
        raise UserError(f"{path}: expected {most} or more numbers per network, found {numbers}")
    common = {
        "config": about.config,
        "class_names": about.class_names,
        "widths": about.widths,
        "extractor": about.extractor,
        "devices": 1,
    }
    networks = {}
    for number, one in enumerate(about.networks):
        own = {name: stacked[number] for name, stacked in arrays.items()}
        networks[one.name] = Exported(str(path), common | {"temperature": one.temperature}, own)
    return config, tuple(about.trust), networks


def _most_numbers(model: ModelConfig, widths: dict[str, int]) -> int:
    """Numbers in the largest of some of a network's arrays, checked before it takes memory."""
    sizes = [*widths.values()]
    for name in model.modalities:
        units = [
            size for size in model.units_of(name) for _ in range(2)
        ]  # the recurrent kernels too
        joint = len(model.modalities) * [model.cross_units] if model.fusion == "cross" else []
        sizes += map(math.prod, pairwise([widths[name], *units, *joint, *model.head_units]))
    return max(sizes)


def _parse(arrays: dict[str, np.ndarray]) -> About:
    """Take `about` out of the arrays and parse it. Raises ValueError, among others."""
    if "about" not in arrays:
        raise ValueError(f"it has no about, but {', '.join(arrays) or 'nothing'}")
    value = json.loads(arrays.pop("about").item())
    if value["format"] != FORMAT:
        raise ValueError(f"this version reads format {FORMAT}, it has {value['format']}")
    about = dacite.from_dict(About, value, dacite.Config(strict=True))
    about.check()
    for name, stacked in arrays.items():
        if stacked.dtype.kind != "f" or not np.isfinite(stacked).all():
            raise ValueError(f"{name}: expected finite numbers, found {stacked.dtype}")
        if stacked.shape[:1] != (len(about.networks),):
            expected = f"arrays of {len(about.networks)} networks"
            raise ValueError(f"{name}: expected {expected}, found shape {stacked.shape}")
    return about
