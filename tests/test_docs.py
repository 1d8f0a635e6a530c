"""The pages: each block of code is run or says why not, commands and links are right."""

import configparser
import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import tyro
from fabric.main import program

import mmattn
import tasks
from mmattn import cli
from tests.media.talking import babble, write_talking
from tests.run.named_clips import write_named_clips

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md")
    for path in sorted(ROOT.glob(pattern))
}


class Block(NamedTuple):
    """Lines of code, and the comment above them: what runs them, or why nothing does."""

    page: str
    mark: str | None
    language: str
    text: str


FENCED = re.compile(r"(?:^<!-- (.+) -->\n)?^```(.*)\n((?s:.*?))^```$", re.MULTILINE)
MARK = re.compile(r"not run: .+|run by (tests/[\w/]+\.py(?:, tests/[\w/]+\.py)*)")
BLOCKS = {
    f"{page}:{len(text[: found.start(2)].splitlines())}": Block(page, *found.groups())
    for page, text in PAGES.items()
    for found in FENCED.finditer(text)
    if not found[2].startswith("{")  # a directive of the site
}
OPTION = r"(?<![\w-])--[a-z][\w.-]*"
OTHERS = {"apt-get", "cd", "curl", "git", "pip", "pre-commit", "python3", "."}
SMALL = (
    *("--data.max-bad", 50, "--data.buckets", 1, "--model.units", "audio=8", "video=8"),
    *("--model.head-units", 8, "--model.head-dropout", 0.1, "--train.epochs", 1, "--devices", 1),
)
CONFIG = mmattn.Config(
    data=mmattn.DataConfig(buckets=1),
    model=mmattn.ModelConfig(
        units={"audio": (8,), "video": (8,)}, head_units=(8,), head_dropout=(0.1,)
    ),
    train=mmattn.TrainConfig(epochs=1),
    devices=1,
)


def blocks(*languages: str, marked: bool | None = None):
    """Parametrises a test by the blocks in some languages, all or the marked or unmarked ones."""
    chosen = {
        name: block
        for name, block in BLOCKS.items()
        if (not languages or block.language in languages) and marked in (None, bool(block.mark))
    }
    return pytest.mark.parametrize("block", chosen.values(), ids=chosen)


def commands_of(text: str) -> Iterator[list[str]]:
    """The words of each command; a line of options alone is those of an experiment."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in line.split(" && "):
            words = [word.rstrip("…") for word in shlex.split(part, comments=True)]
            if words and words[0].startswith("--"):
                words = ["python", "-m", "experiments.no_aug", *words]
            if words:
                yield [word for word in words if word and not re.match(r"[A-Z_]+=", word)]


@pytest.fixture
def read_only(monkeypatch):
    """`read_only(words)`: a command reads its options and does nothing; what it prints."""
    parse = tyro.cli
    monkeypatch.setattr(tyro, "cli", lambda *of, **as_: parse(*of, **as_) and sys.exit())
    extras = configparser.ConfigParser()
    extras.read(ROOT / "setup.cfg")

    def read(words: list[str]) -> str:
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            try:
                match words:
                    case ["mmattn", *options]:
                        monkeypatch.setattr(sys, "argv", ["mmattn", *options])
                        cli.main()
                    case ["python", "-m", module, *options]:
                        monkeypatch.setattr(sys, "argv", [module, *options])
                        monkeypatch.delitem(sys.modules, module, raising=False)
                        runpy.run_module(module, run_name="__main__")
                    case ["fab", *options]:
                        with monkeypatch.context() as patch:  # Invoke shows a task's help once
                            patch.setattr(cli, "end_process_after", lambda *_: None)
                            patch.delitem(sys.modules, tasks.__name__, raising=False)
                            program.run(["fab", "--search-root", str(ROOT), *options])
                    case ["make", *targets]:
                        subprocess.run(["make", "-n", *targets], cwd=ROOT, check=True)
                    case ["pip", "install", "-e", what]:
                        assert {*what[2:-1].split(",")} <= {*extras["options.extras_require"]}, what
                    case ["python", *_]:  # a script of the same page
                        pass
                    case [name, *_]:
                        assert name in OTHERS
            except SystemExit as ended:
                assert not ended.code, f"{shlex.join(words)}: {printed.getvalue()}"
        return printed.getvalue()

    return read


@blocks()
def test_each_says_its_language_and_what_runs_it(block):
    assert block.language, "expected ```bash, ```python or the like"
    if not block.mark:
        assert block.language in ("bash", "python")  # run below
        return
    found = MARK.fullmatch(block.mark)
    assert found, "expected <!-- not run: REASON --> or <!-- run by tests/….py -->"
    if not found[1]:
        return
    tests = "".join((ROOT / path).read_text() for path in found[1].split(", "))
    if block.language != "bash":
        assert Path(block.page).name in tests
        return
    for words in commands_of(block.text):
        if words[0] in ("mmattn", "fab"):
            assert f'"{words[1]}"' in tests, words
        elif words[:2] == ["python", "-m"]:
            assert words[2] in tests, words


@blocks("bash")
def test_a_command_takes_its_options(block, read_only):
    for words in commands_of(block.text):
        read_only(words)


@pytest.mark.slow
@blocks("bash", marked=False)
def test_commands(block, commands, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(write_named_clips(tmp_path))
    shutil.copytree(tiny_run, "RUN")
    shutil.copytree(tiny_run, "OTHER")
    write_talking(Path("clip.mp4"), babble(), seconds=1.0)
    Path("clip.mp4").rename("CLIP")
    for words in commands_of(block.text):
        module, *options = words[2:] if words[0] == "python" else words
        if module == "experiments.no_aug" and not {"--help", "--resume"} & {*options}:
            options += SMALL if "--data.roots" in options else commands.tiny
        commands.run(module, *options)


@blocks("python", marked=False)
def test_lines_of_python(block, tmp_path, monkeypatch):
    clip = next(write_named_clips(tmp_path / "FEATURES").rglob("*.npz"))
    monkeypatch.chdir(tmp_path)
    text = block.text.replace("mmattn.Config()", "CONFIG").replace("clip.mp4", str(clip))
    exec(text, names := {"CONFIG": CONFIG})
    assert names["found"].predicted.min() >= 0


def test_options_in_the_text(read_only):
    codes = [
        (page, " ".join(code.split()))
        for page, text in PAGES.items()
        for code in re.findall(r"`([^`]+)`", FENCED.sub("", text))
    ]
    named = [re.match(r"((mmattn|fab|python -m) [a-z_.]+(?= |$))?", code)[0] for _, code in codes]
    options = {
        command: {*re.findall(OPTION, read_only([*command.split(), "--help"]))}
        for command in {*named, "python -m experiments.no_aug"} - {""}
    }
    options[""] = {"--logdir"}.union(*options.values())  # that is TensorBoard's
    for (page, code), command in zip(codes, named, strict=True):
        unknown = {*re.findall(OPTION, code)} - options[command] - {"--help", "--list"}
        assert not unknown, f"{page}: {code}"


def slug(heading: str) -> str:
    """The anchor that GitHub and the site make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    text = FENCED.sub("", PAGES[page])
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", FENCED.sub("", target.read_text()), re.MULTILINE)
            assert anchor in map(slug, headings), link
