"""What a user meets on the command line: help, typos, wrong input."""

import signal
import subprocess
import sys
from importlib.metadata import version

import pytest

from mmattn.errors import UserError

HELP = """
import runpy, sys
sys.argv = [{module!r}, {command} "--help"]
try:
    runpy.run_module({module!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
names = ("jax", "sklearn", "matplotlib", "flax", "plotly")
heavy = [name for name in names if name in sys.modules]
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    ("module", "command", "word"),
    [
        ("experiments.no_aug", "", "--data.roots"),
        ("mmattn", "", "evaluate"),
        ("mmattn", '"evaluate",', "--checkpoint"),
        ("mmattn", '"report",', "--data.roots"),
        ("mmattn", '"baseline",', "RUN"),
        ("mmattn", '"compare",', "RUN"),
        ("mmattn", '"card",', "--half"),
        ("mmattn", '"manifest",', "--pattern"),
        ("mmattn", '"predict",', "--html"),
        ("mmattn", '"download",', "ravdess"),
        ("mmattn", '"extract",', "--to"),
        ("mmattn", '"align",', "--plot"),
        ("mmattn", '"launch",', "MODULE"),
    ],
)
def test_help_is_light(module, command, word):
    code = HELP.format(module=module, command=command)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert word in done.stdout


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["mmattn", "predict"], "file written by `mmattn card`; or starter"),
        (["experiments.no_aug"], "six (these and disgust, fear, sad) or ravdess8"),
    ],
)
def test_help_has_no_line_breaks_of_the_source(monkeypatch, words, text):
    monkeypatch.setenv("COLUMNS", "100")
    command = [sys.executable, "-m", *words, "--help"]
    assert text in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("module", ["mmattn", "experiments.ablation", "experiments.compare"])
def test_help_fits_the_terminal(monkeypatch, module):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    command = [sys.executable, "-m", module, "--help"]
    said = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
    # Not the usage, which is tyro's, nor commands, which are not broken.
    own = [line for line in said.splitlines()[1:] if not line.lstrip().startswith("python ")]
    assert max(map(len, own)) <= 80


@pytest.mark.parametrize("module", ["mmattn", "experiments.no_aug"])
def test_help_may_be_cut_short(module):
    """As by `head`: the reader leaves before the help is written."""
    command = [sys.executable, "-m", module, "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == -signal.SIGPIPE


@pytest.mark.parametrize(
    ("work", "said", "code"),
    [
        ("print('long')", b"", 128 + signal.SIGPIPE),
        ("say('long')", b"", 128 + signal.SIGPIPE),
        ("print('long'); raise UserError('bad')", b"error: bad\n", UserError.exit_code),
    ],
)
def test_output_may_be_cut_short(work, said, code, monkeypatch):
    """As by `mmattn … --json | head`."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # what is printed is written at the end
    source = (
        "from mmattn.cli import UserError, end_process_after\n"
        "from mmattn.console import say\n"
        f"def work():\n    {work}\n"
        "end_process_after(work)"
    )
    command = [sys.executable, "-c", source]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == said
    assert process.returncode == code


@pytest.mark.parametrize(
    ("drops", "code", "said"),
    [
        ("signal.raise_signal(signal.SIGINT)", 130, "interrupted"),
        ("loop.call_soon_threadsafe(print)", 0, ""),
        ("1 / 0", 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_what_python_drops(drops, code, said):
    """An interrupt, as in JAX's callback of the garbage collector, comes again; what TensorStore
    makes of a closed event loop, after an interrupt, is not shown; all else is."""
    source = (
        "import asyncio, gc, signal, time\n"
        "from mmattn.cli import run_command\n"
        "loop = asyncio.new_event_loop()\nloop.close()\n"
        f"def drop(*_):\n    gc.callbacks.clear()\n    {drops}\n"
        "def command():\n    gc.callbacks.append(drop)\n    gc.collect()\n"
        f"    for _ in range({600 if code else 0}):\n        time.sleep(0.1)\n"
        "    return lambda: None\n"
        "run_command(command, 'command', None)"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert (done.returncode, done.stderr[-len(said) - 1 :].strip()) == (code, said)


def test_version(commands):
    assert commands.run("mmattn", "--version").split() == [version("mmattn")]


def test_a_typo_gets_a_suggestion(commands):
    text = commands.run("experiments.no_aug", "--train.bach", 3, code=2)
    assert "--train.bach" in text and "--train.batch" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--train.batch", "0"], ["--train.batch 0", "2 or more"]),
        (["--train.batch", "many"], ["--train.batch", "many"]),
        (["--model.head-dropout", "0.5"], ["--model.head-dropout", "--model.head-units"]),
        (["--model.fusion", "crss"], ["--model.fusion crss: expected concat or late or cross"]),
        (["--track", "wandb"], ["tracker wandb"]),
        (["--model.modalities"], ["--model.modalities", "one or more, each once"]),
        (["--data.roots", "/nowhere/at/all"], ["/nowhere/at/all: expected a folder"]),
        (["--data.synthetic.speakers", "2"], ["2 speakers, expected 3 or more"]),
        (["--data.fold", "1"], ["--data.folds"]),
        (["--data.split", "column"], ["a column split with values"]),
        (["--devices", "99"], ["--devices 99", "24"]),
        (["--resume"], ["/run: expected a run's folder, but it does not exist"]),
        (["--model.head-units", "0", "0"], ["--model.head-units", "1 unit or more"]),
        (["--data.labels", "ravdess8"], ["--data.labels", "without --data.roots"]),
        (["--augment.own-tempo", "audio=1.1,0.9"], ["--augment.own-tempo (1.1, 0.9)", "≤ high"]),
    ],
)
def test_wrong_options_are_one_clear_message(commands, tmp_path, monkeypatch, options, words):
    monkeypatch.setitem(commands.environment, "WANDB_MODE", "online")
    monkeypatch.setitem(commands.environment, "WANDB_API_KEY", "no key")  # nor a user's own login
    text = commands.run("experiments.no_aug", *options, "--out", tmp_path / "run", code=2)
    assert all(word in text for word in words), text
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_start_that_fails_leaves_no_folder(commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands.run("experiments.no_aug", "--data.synthetic.speakers", 2, code=2)
    assert [*tmp_path.rglob("*")] == [tmp_path / "runs", tmp_path / "runs/no_aug"]


def test_a_folder_with_other_things_is_left_alone(commands, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    text = commands.run("experiments.no_aug", "--out", tmp_path, code=2)
    assert "thesis.tex" in text
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("command", ["evaluate", "report", "compare"])
def test_what_is_no_run(commands, tmp_path, command):
    assert "config.json" in commands.run("mmattn", command, tmp_path, code=2)


def test_no_run_to_compare(commands):
    assert "RUN...: expected one run or more" in commands.run("mmattn", "compare", code=2)
