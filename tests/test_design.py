"""The examples of docs/design.md: each applies to the package and does what the page says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = re.findall(r"```diff\n(.*?)```", (ROOT / "docs/design.md").read_text(), re.S)
CORPUS = """
from mmattn.data.corpora import row_of
assert row_of("OAF_back_ps") == {
    "corpus": "tess", "speaker": "OAF", "emotion": "surprised", "word": "back"
}
"""
FEATURE = """
import numpy as np
from mmattn.config import ExtractConfig
from mmattn.media.extract import EXTRACTORS
take = EXTRACTORS["audio"]["level"](ExtractConfig()).start()
found = take(np.full(16000, 0.1, np.float32), 16000)
np.testing.assert_allclose(found.frames, -20, atol=1e-4)
np.testing.assert_allclose(found.times, np.arange(50) * 0.02 + 0.01)
"""
FUSION = """
import mmattn
from mmattn.config import ModelConfig
corpus = mmattn.load_corpus(synthetic=mmattn.config.SyntheticConfig(clips=144, speakers=12))
split = mmattn.split(corpus)
config = mmattn.Config(
    model=ModelConfig(fusion="maximum", units={"audio": (8,), "video": (8,)}),
    train=mmattn.TrainConfig(epochs=1),
)
found = mmattn.fit(corpus, split, config).predict_corpus(corpus, split.test)
assert found.probabilities.shape == (len(split.test), len(corpus.class_names))
"""
METRIC = """
import numpy as np
from mmattn.evaluate.metrics import METRICS, kappa
assert np.isclose(kappa(np.array([[20, 5], [10, 15]])), 0.4)  # 0.7 right, 0.5 by chance
assert "kappa" in METRICS
"""
TRACKER = """
import mmattn
from mmattn.config import ModelConfig
from mmattn.train.trackers import make_trackers
corpus = mmattn.load_corpus(synthetic=mmattn.config.SyntheticConfig(clips=144, speakers=12))
config = mmattn.Config(
    model=ModelConfig(units={"audio": (8,), "video": (8,)}), train=mmattn.TrainConfig(epochs=1)
)
mmattn.fit(corpus, mmattn.split(corpus), config, folder="run", callbacks=make_trackers(["table"]))
assert "1\\ttrain/loss\\t" in open("run/curves.tsv").read()
"""
USES = {
    "corpus": CORPUS,
    "feature": FEATURE,
    "fusion": FUSION,
    "metric": METRIC,
    "tracker": TRACKER,
}


@pytest.mark.parametrize(
    ("example", "use"),
    [
        pytest.param(example, use, marks=[pytest.mark.slow] * (use in (FUSION, TRACKER)), id=name)
        for example, (name, use) in zip(EXAMPLES, USES.items(), strict=True)
    ],
)
def test_an_example_works(example, use, tmp_path):
    shutil.copytree(ROOT / "mmattn", tmp_path / "mmattn", ignore=shutil.ignore_patterns("*.pyc"))
    subprocess.run(["git", "apply", "-"], input=example, text=True, cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "-c", use], cwd=tmp_path, check=True)
