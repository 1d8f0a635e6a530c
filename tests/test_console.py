"""Progress where there is no terminal, and a process that shows nothing."""

import pytest

from mmattn import console


@pytest.mark.parametrize(
    ("done", "seconds", "said"),
    [
        (0, 20.0, "work: 0/100 clips"),
        (40, 20.0, "work: 40/100 clips, 2 clips/s, 30 s left"),
        (20, 20.0, "work: 20/100 clips, 1 clips/s, 80 s left"),
        (2, 40.0, "work: 2/100 clips, 3.0 clips/min, 1960 s left"),  # less than one a second
    ],
)
def test_a_plain_line_with_rate_and_time_left(monkeypatch, done, seconds, said):
    now, lines = [100.0], []
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(console, "say", lines.append)
    with console.progress("work", 100) as advance:
        now[0] += 5
        advance(0)
        now[0] += seconds - 5
        advance(done)
    assert lines == [said]


def test_names_are_shown_as_they_are(capsys):
    console.complain("clips/:smile:[red].mp4")
    assert capsys.readouterr().err == "clips/:smile:[red].mp4\n"


def test_a_long_table_says_that_it_is_cut(caplog):
    caplog.set_level("INFO")
    console.say_table("Faults", ("line",), [(number,) for number in range(5)], most=3)
    title, *_, last = caplog.messages[0].splitlines()
    assert title == "Faults, the first 3" and last.strip() == "2"


def test_a_quiet_process_writes_its_log_alone(monkeypatch, tmp_path, capsys):
    quiet = console.Console()
    monkeypatch.setattr(console, "screen", quiet)
    console.be_quiet()
    with console.log_to(tmp_path / "log"), console.progress("work", 3) as advance:
        advance(3)
        console.say("done")
    assert capsys.readouterr().out == ""
    assert (tmp_path / "log").read_text().endswith(" done\n")
