"""Every experiment's real config runs, shrunk, to its summary."""

import importlib
import json
import pkgutil

import pytest

import experiments

MODULES = [
    importlib.import_module(f"experiments.{found.name}")
    for found in pkgutil.iter_modules(experiments.__path__)
]
# Those that train once; a study has no config of its own.
CONFIGS = {
    module.__name__.removeprefix("experiments."): module.CONFIG
    for module in MODULES
    if hasattr(module, "CONFIG")
}
SMALL = (
    *("--ensemble-size", 1, "--devices", 2, "--data.buckets", 1, "--train.epochs", 1),
    *("--model.head-units", 8, "--model.head-dropout", "0.1"),
)


@pytest.fixture(scope="session")
def feature_files(commands, tmp_path_factory):
    """About 70 RAVDESS-named feature files, as wide as the real ones."""
    folder = tmp_path_factory.mktemp("corpus") / "files"
    commands.run("benchmarks.full_size", folder, "--clips", 420)
    return folder / "RAVDESS"


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_experiment_runs(commands, feature_files, tmp_path, name):
    config = CONFIGS[name]
    assert config.name == name
    options = [*SMALL, "--data.cache", tmp_path / "cache", "--out", tmp_path / "run"]
    options += ["--model.units", *(f"{modality}=4" for modality in config.model.modalities)]
    if config.data.folds:
        options += ["--data.fold", 1, "--data.roots", feature_files]
    else:
        options += ["--data.synthetic.clips", 144, "--data.synthetic.audio-rate", 20]
    commands.run(f"experiments.{name}", *options)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 <= summary["test"]["uar"]["value"] <= 1
