"""Checkpoints: best, final and latest, each enough to resume or predict. Only here is orbax."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from mmattn.errors import UserError
from mmattn.files import explain_full_disk
from mmattn.train import processes

if TYPE_CHECKING:  # otherwise imported where used: saves 0.25 s before the first step
    import orbax.checkpoint as ocp

Kind = Literal["best", "final", "latest"]
Chosen = Literal["best", "final"]  # to predict with
FIRST = {0}
TRAINING = ("state.step", "state.opt_state", "sums")  # not needed for a prediction


class Checkpoints:
    """The checkpoints in a run's folder, `checkpoints/<kind>/<optimiser step>/`.

    Each kind keeps one checkpoint. A new one is complete under its name before the old one is
    deleted, so a crash or a full disk leaves a good one. With several processes, all make the same
    calls: if they share the disk of the run's folder, each writes its shard; otherwise process 0
    writes everything. Only process 0 reads.
    """

    def __init__(self, folder: Path):
        self.run, self.folder = folder, folder / "checkpoints"
        self._common: bool | None = None

    def __str__(self) -> str:
        return str(self.run)

    def save(self, kind: Kind, step: int, arrays: Any, about: dict) -> None:
        """Save under the number of the optimiser step; an existing step is kept.

        Raises:
            UserError: the disk is full; the last checkpoint of this kind is untouched.
        """
        there = self.folder / kind / str(step)
        if processes.from_first(there.exists):
            return
        named = by_name(arrays)
        if processes.count() > 1 and self._on_a_common_disk():
            self._save(kind, step, processes.on_all(named), about, None)
        else:
            processes.from_first(lambda: self._save(kind, step, named, about, FIRST))

    def about(self, kind: Kind) -> dict | None:
        """The JSON of the checkpoint, or None if there is none."""
        return processes.from_first(lambda: self._about(kind))

    def load(self, kind: Kind, like: Any) -> Any:
        """The arrays, in the structure of `like`.

        Raises:
            UserError: there is no such checkpoint, or its arrays have other names or shapes.
        """
        found = []
        processes.from_first(lambda: found.append(self._load(kind, like)))
        return processes.arrays_from_first(found[0] if found else like)

    def _on_a_common_disk(self) -> bool:
        """Whether all processes see what process 0 writes."""
        if self._common is None:
            name = processes.from_first(self._leave_a_mark)
            self._common = all(processes.exchange((self.folder / name).exists()))
            processes.from_first((self.folder / name).unlink)
        return self._common

    def _leave_a_mark(self) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f".{uuid.uuid4().hex}"
        (self.folder / name).touch()
        return name

    def _save(
        self, kind: Kind, step: int, named: dict, about: dict, members: set[int] | None
    ) -> None:
        import orbax.checkpoint as ocp

        parts = ocp.args.Composite(
            arrays=ocp.args.StandardSave(named), about=ocp.args.JsonSave(about)
        )
        what = f"{self.folder / kind}; the last good checkpoint is intact"
        with explain_full_disk(what), self._manager(kind, members) as manager:
            manager.save(step, args=parts)

    def _about(self, kind: Kind) -> dict | None:
        import orbax.checkpoint as ocp

        if not (self.folder / kind).is_dir():
            return None
        with self._manager(kind) as manager:
            step = manager.latest_step()
            if step is None:
                return None
            return manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))[
                "about"
            ]

    def _load(self, kind: Kind, like: Any) -> Any:
        import orbax.checkpoint as ocp

        path = self.folder / kind
        wanted = by_name(like)
        with self._manager(kind) as manager:
            step = manager.latest_step()
            if step is None:
                raise UserError(f"{path}: expected a checkpoint, found none")
            try:
                parts = ocp.args.Composite(arrays=ocp.args.StandardRestore(wanted))
                found = manager.restore(step, args=parts)["arrays"]
            except (ValueError, KeyError, OSError) as error:
                raise UserError(f"{path}/{step} does not fit this network: {error}") from error
        leaves = [np.asarray(found[name]) for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def _manager(self, kind: Kind, members: set[int] | None = FIRST) -> "ocp.CheckpointManager":
        """Orbax's manager, in which these processes take part, or all."""
        import orbax.checkpoint as ocp

        path = (self.folder / kind).resolve()
        several = {}
        if jax.process_count() > 1 and members:
            path.mkdir(parents=True, exist_ok=True)
            some = ocp.options.MultiprocessingOptions(primary_host=0, active_processes=members)
            several = {"multiprocessing_options": some, "create": False}
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=False, **several
        )
        return ocp.CheckpointManager(path, options=options)


class InMemory:
    """The checkpoints of a training that has no folder."""

    def __init__(self) -> None:
        self.kept: dict[Kind, tuple[int, Any, dict]] = {}

    def __str__(self) -> str:
        return "the training"

    def save(self, kind: Kind, step: int, arrays: Any, about: dict) -> None:
        """Keep one checkpoint of each kind."""
        self.kept[kind] = step, arrays, about

    def about(self, kind: Kind) -> dict | None:
        """As `Checkpoints.about`."""
        return self.kept[kind][2] if kind in self.kept else None

    def load(self, kind: Kind, like: Any) -> Any:
        """As `Checkpoints.load`, but the arrays as they were saved, whatever `like` is."""
        return self.kept[kind][1]

    def write(self, checkpoints: Checkpoints) -> None:
        """Write the checkpoints to a folder."""
        for kind, kept in self.kept.items():
            checkpoints.save(kind, *kept)


class Exported:
    """One network of a model file, as a checkpoint: enough to predict, not to resume."""

    def __init__(self, place: str, about: dict, arrays: Mapping[str, np.ndarray]):
        """See `mmattn.run.shared`; the arrays are named as by `by_name`."""
        self._place, self._about, self._arrays = place, about, arrays

    def __str__(self) -> str:
        return self._place

    def about(self, kind: Kind) -> dict | None:
        """As `Checkpoints.about`; only the best exists."""
        return self._about if kind == "best" else None

    def load(self, kind: Kind, like: Any) -> Any:
        """As `Checkpoints.load`, but arrays needed only for training come from `like`."""
        wanted = by_name(like)
        needed = {name: x.shape for name, x in wanted.items() if not name.startswith(TRAINING)}
        found = {name: x.shape for name, x in self._arrays.items()}
        if other := sorted(name for name, _ in needed.items() ^ found.items()):
            shapes = (of.get(other[0], "nothing") for of in (needed, found))
            raise UserError(
                "{} does not fit this network: expected {} of shape {}, found {}".format(
                    self, other[0], *shapes
                )
            )
        leaves = [self._arrays.get(name, x).astype(x.dtype) for name, x in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


def about_of(checkpoints: Checkpoints | InMemory | Exported, kind: Kind) -> dict:
    """The JSON of a checkpoint; UserError if there is none."""
    about = checkpoints.about(kind)
    if about is None:
        raise UserError(
            f"{checkpoints}: expected a {kind} checkpoint, found none; a training writes best "
            "after its first epoch, and final at its end: --resume continues it"
        )
    return about


def by_name(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree by their path, as NumPy arrays."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(x) for path, x in leaves
    }
