"""What `fab deploy` takes, what it refuses before anything is made, and what it says it costs."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from mmattn.errors import UserError
from mmattn.remote.offers import MachineType
from mmattn.remote.plan import confirm, cost_text, devices_text, instance_request, new_run
from mmattn.remote.runs import Run, parse_host

C5 = MachineType("c5.24xlarge", 96, 48, True, 192, "x86_64")
ARM = MachineType("c7g.16xlarge", 64, 64, False, 128, "arm64")
IMAGE = {"ImageId": "ami-1", "RootDeviceName": "/dev/xvda"}
DISK = 20 * 0.08 / 730  # dollars an hour
RUN = Run(
    *("no_aug-20260101-000000-aaaa", "no_aug"),
    hours=6,
    instance_type="c5.24xlarge",
    region="us-east-1",
    owner="arn:aws:iam::123456789012:user/me",
)


def asked(**changes):
    """A run on a machine that exists, from options as `fab deploy` passes them."""
    return new_run(**{"experiment": "no_aug", "host": "me@example.org"} | changes)


def test_options_become_a_run(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "1001_DFA_ANG_XX.npz").touch()
    run = asked(args="--train.epochs 3 --seed=7", data=[str(tmp_path)])
    assert run.args == ["--train.epochs", "3", "--seed=7"]
    assert run.data == [str(tmp_path)]
    assert run.name.startswith("no_aug-")
    assert str(run.results) == f"runs/no_aug/{run.name.removeprefix('no_aug-')}"
    account = SimpleNamespace(region="us-east-1", caller=lambda: RUN.owner)
    monkeypatch.setattr("mmattn.remote.plan.Cloud", lambda region: account)
    assert asked(host="", hours="0.5").hours == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experiment": "nothing"}, "--experiment nothing: expected one of ablation, aligned_aug"),
        ({"experiment": "compare", "args": "--nope"}, "not options of experiments.compare"),
        ({"experiment": "../x"}, "--experiment ../x: expected one of"),
        ({"args": "--train.epoch 3"}, "--args: not options of experiments.no_aug"),
        ({"args": "--train.epochs 0"}, "train.epochs"),
        ({"args": "--seed '1"}, "--args --seed '1: No closing quotation"),
        ({"args": "--out=/x"}, "--args --out=/x: fab deploy sets it"),
        ({"args": "--resume"}, "--args --resume: fab deploy sets it"),
        ({"args": "--data.roots x"}, "use --data for data"),
        ({"hours": "abc"}, "--max-hours abc: expected a number above 0"),
        ({"hours": "nan"}, "--max-hours nan"),
        ({"hours": "0"}, "--max-hours 0"),
        ({"hours": "1000"}, "at most 144"),
        ({"grace_minutes": "-1"}, "--grace-minutes -1"),
        ({"data": ["/does/not/exist"]}, "--data /does/not/exist: expected a folder"),
        ({"host": "me@"}, "--host me@: expected [user@]address[:port] or a name in"),
        ({"host": "me@x; rm -rf /"}, "or a name in"),
        ({"host": "-oProxyCommand=x@y"}, "or a name in"),
        ({"spot": True}, "--spot is for EC2: expected no --host"),
        ({"ami": "ami-1"}, "--ami is for EC2: expected no --host"),
        ({"hours": "2"}, "--max-hours is for EC2: expected no --host"),
        ({"host": "", "allow_from": "0.0.0.0/0"}, "expected public addresses, at most a /16"),
        ({"host": "", "allow_from": "54.0.0.0/15"}, "expected public addresses, at most a /16"),
        ({"host": "", "allow_from": "10.1.0.0/16"}, "10.1.0.0/16: expected public addresses"),
        ({"host": "", "allow_from": "203.0.113.7/24"}, "203.0.113.7/24 has host bits set"),
        ({"host": "", "allow_from": "2001:db8::/64"}, "expected an IPv4 network"),
    ],
)
def test_a_wrong_option_is_named(changes, message):
    with pytest.raises(UserError) as error:
        asked(**changes)
    assert message in str(error.value)


def test_a_folder_without_feature_files_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected feature files \(.npz\), found none"):
        asked(data=[str(tmp_path)])


def test_a_study_may_run_there():
    assert asked(experiment="compare", args="--seeds 2").is_study
    assert not asked().is_study


@pytest.mark.parametrize(
    ("host", "address", "user", "port"),
    [
        ("cluster", "cluster", None, None),
        ("me@example.org", "example.org", "me", None),
        ("me@10.0.0.1:2222", "10.0.0.1", "me", 2222),
        ("me@[fe80::1]:2222", "fe80::1", "me", 2222),
    ],
)
def test_hosts(host, address, user, port):
    assert parse_host(host) == (address, user, port, None)


def test_the_cost_is_the_price_of_all_hours_the_address_and_the_disk():
    # 6 h x ($4.08 + $0.005) and 20 GiB x 6 h x $0.08 / 730 h = $24.51 + $0.013
    text = cost_text(RUN, 4.08, DISK)
    assert text.startswith("$4.08 an hour (on demand in us-east-1); the kept disk $0.05 a day")
    assert "at most $24.52 with its address and disk, without traffic" in text


def test_a_spot_machine_costs_at_most_what_it_costs_on_demand():
    spot = replace(RUN, spot=True)
    text = cost_text(spot, 4.08, DISK)
    assert "on demand in us-east-1, the most that the spot machine may cost)" in text
    assert "at most $24.52" in text
    market = instance_request(spot, C5, IMAGE, 20, 4.08)["InstanceMarketOptions"]["SpotOptions"]
    assert float(market["MaxPrice"]) == 4.08
    market = instance_request(spot, C5, IMAGE, 20, None)["InstanceMarketOptions"]["SpotOptions"]
    assert "MaxPrice" not in market


def test_an_unknown_price_is_called_unknown():
    assert cost_text(RUN, None, None).startswith("unknown: ")
    assert cost_text(RUN, 4.08, None).endswith("; the disk's price is unknown")


def test_a_bucket_lets_the_disk_go_with_the_machine():
    for uri, goes in ((None, False), ("s3://bucket/prefix", True)):
        request = instance_request(replace(RUN, results_uri=uri), C5, IMAGE, 20, 4.08)
        assert request["BlockDeviceMappings"][0]["Ebs"]["DeleteOnTermination"] is goes


def test_threads_of_a_core_are_switched_off():
    request = instance_request(RUN, C5, IMAGE, 20, 4.08)
    assert request["CpuOptions"] == {"CoreCount": 48, "ThreadsPerCore": 1}
    assert "CpuOptions" not in instance_request(RUN, ARM, IMAGE, 20, 4.08)


@pytest.mark.parametrize(
    ("machine", "changes", "text"),
    [
        (C5, {"args": ["--train.batch", "96"]}, "48 devices on 48 cores, with a batch of 96 clips"),
        (
            C5,
            {"args": ["--train.batch", "24"]},
            "24 devices on 48 cores, with a batch of 24 clips: 24 idle; --train.batch 48 uses all, "
            "but trains differently",
        ),
        (C5, {"args": ["--train.batch=96"], "instances": 2}, "96 devices on 96 cores, with"),
        (C5, {"args": ["--train.batch=96", "--devices=32"]}, "32 devices on 48 cores, with"),
    ],
)
def test_the_plan_says_how_much_of_the_machine_is_used(machine, changes, text):
    assert devices_text(replace(RUN, **changes), machine).startswith(text)


@pytest.mark.parametrize("answer", ["", "n", "yess", "no"])
def test_only_yes_confirms(answer, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda _: answer)
    with pytest.raises(UserError, match="not confirmed: nothing was done"):
        confirm("Deploy?")


def test_no_terminal_to_ask_at(monkeypatch):
    def no_input(_):
        raise EOFError

    monkeypatch.setattr("builtins.input", no_input)
    with pytest.raises(UserError, match="give --yes"):
        confirm("Deploy?")
