"""What `fab deploy` takes, what it refuses before anything is made, and what it says it costs."""

import pytest

from mmattn.errors import UserError
from mmattn.remote import prices
from mmattn.remote.cloud import Image, MachineType
from mmattn.remote.plan import Plan, confirm, cost_text, new_run
from mmattn.remote.runs import Run, parse_host

C5 = MachineType("c5.24xlarge", 96, 192 * 2**30, "x86_64")


def asked(**changes):
    """A run on a machine that exists, from options as `fab deploy` passes them."""
    options = {
        "experiment": "no_aug",
        "args": "",
        "data": [],
        "hours": "6",
        "grace_minutes": "60",
        "host": "me@example.org",
        "region": None,
        "instance_type": "c5.24xlarge",
        "instances": "1",
        "spot": False,
    }
    options |= changes
    words = (options.pop("experiment"), options.pop("args"), options.pop("data"))
    return new_run(*words, **options)


def test_options_become_a_run(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "1001_DFA_ANG_XX.npz").touch()
    run = asked(args="--train.epochs 3 --seed=7", data=[str(tmp_path)], hours="0.5")
    assert run.args == ["--train.epochs", "3", "--seed=7"]
    assert run.data == [str(tmp_path)]
    assert run.hours == 0.5
    assert run.name.startswith("no_aug-")
    assert str(run.results) == f"runs/no_aug/{run.name.removeprefix('no_aug-')}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experiment": "nothing"}, "--experiment nothing: expected one of ablation, aligned_aug"),
        ({"experiment": "compare"}, "--experiment compare: expected one training"),
        ({"experiment": "../x"}, "--experiment ../x: expected one of"),
        ({"args": "--train.epoch 3"}, "--args: not what experiments.no_aug takes"),
        ({"args": "--train.epochs 0"}, "train.epochs"),
        ({"args": "--seed '1"}, "--args --seed '1: No closing quotation"),
        ({"args": "--out=/x"}, "--args --out=/x: the deployment sets it"),
        ({"args": "--resume"}, "--args --resume: the deployment sets it"),
        ({"args": "--data.roots x"}, "data come by --data"),
        ({"hours": "abc"}, "--max-hours abc: expected a number above 0"),
        ({"hours": "nan"}, "--max-hours nan"),
        ({"hours": "0"}, "--max-hours 0"),
        ({"hours": "1000"}, "at most 144"),
        ({"grace_minutes": "-1"}, "--grace-minutes -1"),
        ({"data": ["/does/not/exist"]}, "--data /does/not/exist: expected a folder"),
        ({"host": "example.org"}, "--host example.org: expected user@address"),
        ({"host": "me@x; rm -rf /"}, "expected user@address"),
        ({"host": "-oProxyCommand=x@y"}, "expected user@address"),
        ({"spot": True}, "--spot: expected no --host"),
    ],
)
def test_a_wrong_option_is_named(changes, message):
    with pytest.raises(UserError) as error:
        asked(**changes)
    assert message in str(error.value)


def test_a_folder_without_feature_files_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected feature files \(.npz\), found none"):
        asked(data=[str(tmp_path)])


@pytest.mark.parametrize(
    ("host", "parts"),
    [
        ("me@example.org", ("me", "example.org", 22)),
        ("me@10.0.0.1:2222", ("me", "10.0.0.1", 2222)),
        ("me@[fe80::1]:2222", ("me", "fe80::1", 2222)),
    ],
)
def test_hosts(host, parts):
    assert parse_host(host) == parts


def test_the_cost_is_the_price_of_all_hours_and_the_disk():
    run = Run("r", "no_aug", hours=6, instance_type="c5.24xlarge", region="us-east-1")
    plan = Plan(C5, Image("ami-1", "/dev/xvda", 8), 20, prices.on_demand("c5.24xlarge", 96))
    # 6 h x $4.08 and 20 GiB x 6 h x $0.08 / 730 h = $24.48 + $0.013
    assert "$4.08 an hour" in cost_text(run, plan)
    assert "at most $24.49 " in cost_text(run, plan)


def test_prices_are_linear_in_a_family_and_unknown_outside():
    assert prices.on_demand("c5.xlarge", 4) == pytest.approx(0.17)
    assert prices.on_demand("p5.48xlarge", 192) is None
    assert prices.on_demand("c5.metal", 96) is None
    run = Run("r", "no_aug", instance_type="p5.48xlarge", region="us-east-1")
    assert "unknown" in cost_text(run, Plan(C5, Image("ami-1", "/dev/xvda", 8), 20, None))


@pytest.mark.parametrize("answer", ["", "n", "yess", "no"])
def test_only_yes_confirms(answer, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: answer)
    with pytest.raises(UserError, match="not confirmed: nothing was done"):
        confirm("Deploy?", yes=False)


def test_no_terminal_to_ask_at(monkeypatch):
    def no_input(_):
        raise EOFError

    monkeypatch.setattr("builtins.input", no_input)
    with pytest.raises(UserError, match="give --yes"):
        confirm("Deploy?", yes=False)
    confirm("Deploy?", yes=True)
