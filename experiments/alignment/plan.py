"""The plan of a study: blocks of one corpus, each with arms, fusions, folds and seeds."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal, NamedTuple

from mmattn.config import AugmentConfig, ExperimentConfig

REFERENCE = "no_aug"
SPLIT_SEED = 0  # the same test speakers for every seed, so that seeds can be compared


@dataclass(frozen=True)
class Block:
    """One corpus and its training; arms differ only in augmentation."""

    name: str
    about: str
    """A description for tables and page: what the data are, and whether they are synthetic."""
    config: ExperimentConfig
    fusions: tuple[Literal["concat", "cross"], ...]
    arms: Mapping[str, AugmentConfig]
    """By name; `REFERENCE` is among them."""
    folds: tuple[int | None, ...] = (None,)


@dataclass(frozen=True)
class Study:
    """Blocks and seeds; arms are compared within each block."""

    blocks: tuple[Block, ...]
    seeds: int

    def cells(self) -> Iterator["Cell"]:
        """Every training, ordered so that those with shared compilations are adjacent."""
        for block in self.blocks:
            for fusion in block.fusions:
                for seed in range(self.seeds):
                    for fold in block.folds:
                        for arm in block.arms:
                            yield Cell(block.name, fusion, arm, seed, fold)

    def block(self, name: str) -> Block:
        """The block of that name."""
        return next(block for block in self.blocks if block.name == name)

    def config(self, cell: "Cell") -> ExperimentConfig:
        """The config of a cell."""
        block = self.block(cell.block)
        config = block.config
        data = config.data if cell.fold is None else replace(config.data, fold=cell.fold)
        model = replace(config.model, fusion=cell.fusion)
        return replace(config, seed=cell.seed, data=data, model=model, augment=block.arms[cell.arm])

    def to_json(self) -> dict:
        """All that decides the results, as plain values."""
        return {
            "seeds": self.seeds,
            "blocks": [
                {
                    "name": block.name,
                    "config": block.config.to_json(),
                    "fusions": list(block.fusions),
                    "folds": list(block.folds),
                    "arms": {
                        arm: json.loads(json.dumps(asdict(augment)))
                        for arm, augment in block.arms.items()
                    },
                }
                for block in self.blocks
            ],
        }


class Cell(NamedTuple):
    """One training of a study."""

    block: str
    fusion: str
    arm: str
    seed: int
    fold: int | None

    @property
    def folder(self) -> str:
        """Its path below the study's folder."""
        return f"{self.block}/{self.fusion}/{self.arm}/{part_name(self.seed, self.fold)}"


def part_name(seed: int, fold: int | None) -> str:
    """The name of a training with a seed and perhaps a fold."""
    return f"seed{seed}" + ("" if fold is None else f"-fold{fold}")
