"""An ablation in small: what is trained, what is compared, what is not done again."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments import ablation
from experiments.alignment.ablation import run_ablation
from experiments.alignment.statistics import paired_difference
from mmattn.config import OtherDataConfig
from mmattn.errors import UserError
from mmattn.evaluate.metrics import scores_by_speaker
from mmattn.evaluate.predictions import read_predictions
from tests.alignment.small import CONFIG

GRID = {
    "audio+video": {
        "lstm": CONFIG,
        "mean": replace(CONFIG, model=replace(CONFIG.model, encoder="none", pooling="mean")),
    }
}


def test_the_grid_has_every_network_with_every_fusion():
    base = replace(ablation.BASE, data=replace(ablation.BASE.data, roots=(Path("clips"),)))
    grid = dict(ablation.models(base, "audio+video"))
    found = {
        (one.model.encoder, one.model.pooling, one.model.fusion)
        for name, one in grid.items()
        if "without" not in name
    }
    kinds = (("lstm", "attention"), ("none", "attention"), ("none", "mean"))
    assert found == {(*kind, fusion) for kind in kinds for fusion in ("concat", "late", "cross")}
    assert next(iter(grid)) == "lstm-attention-concat"
    for config in grid.values():
        config.check()
        assert config.ensemble_size == 1
        assert config.model.modalities == ("audio", "video")


def test_one_modality_has_nothing_to_fuse():
    assert {one.model.fusion for _, one in ablation.models(ablation.BASE, "audio")} == {"concat"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"--data\.roots: expected folders"),
        (
            {"features": ("",), "data": OtherDataConfig((Path("clips"),))},
            "--features: expected MOD",
        ),
        ({"seeds": 0}, "--seeds 0: expected 1 or more"),
        ({"workers": 0}, "--workers 0: expected 1 or more"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        ablation.Options(**options)()


@pytest.mark.slow
def test_rows_are_paired_with_the_first(tmp_path):
    run_ablation(GRID, tmp_path, 2, 2)
    values = {
        name: np.stack(
            [
                scores_by_speaker(read_predictions(file))["uar"]
                for file in sorted(tmp_path.glob(f"audio+video/{of}/*/{name}.csv"))
            ]
        )
        for name, of in (("lstm", "lstm"), ("mean", "mean"), ("linear-late", "linear"))
    }
    text = (tmp_path / "results.md").read_text()
    for name in ("mean", "linear-late"):
        _, uar, ahead = re.search(rf"\| ({name}) \| (\S+) \[.*?\| (\S+) \[", text).groups()
        assert float(uar) == pytest.approx(values[name].mean(), abs=6e-4)
        expected = paired_difference(values["lstm"], values[name]).value
        assert float(ahead) == pytest.approx(expected, abs=6e-4)
    assert (tmp_path / "results.png").stat().st_size > 5000
    assert not [*tmp_path.glob("**/checkpoints")]

    kept, again = sorted(tmp_path.glob("audio+video/mean/*/mean.csv"))
    before, at = again.read_bytes(), kept.stat().st_mtime_ns
    (again.parent / "done").unlink()
    run_ablation(GRID, tmp_path, 2, 2)
    assert again.read_bytes() == before
    assert kept.stat().st_mtime_ns == at
    with pytest.raises(UserError, match="holds another study"):
        run_ablation(GRID, tmp_path, 1, 2)


@pytest.mark.slow
def test_one_modality_has_one_linear_model(tmp_path):
    mean = GRID["audio+video"]["mean"]
    audio = replace(mean.model, modalities=("audio",), units={"audio": (4,)})
    run_ablation({"audio": {"mean": replace(mean, model=audio)}}, tmp_path, 1, 1)
    text = (tmp_path / "results.md").read_text()
    assert re.findall(r"\| audio \| (\S+) \|", text) == ["mean", "linear"]
