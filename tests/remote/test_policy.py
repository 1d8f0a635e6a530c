"""docs/remote-policy.json permits what remote training does, and nothing besides."""

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest

from mmattn.errors import UserError
from mmattn.remote.cloud import RUN
from mmattn.remote.fetch import fetch_once
from mmattn.remote.launch import make_instance
from mmattn.remote.plan import make_plan
from mmattn.remote.runs import Run
from mmattn.remote.teardown import list_runs, teardown


def statements(name: str) -> list[dict]:
    path = Path(__file__).parents[2] / f"docs/{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["Statement"]


def as_list(one: str | list[str]) -> list[str]:
    return [one] if isinstance(one, str) else one


def actions(some: list[dict]) -> list[str]:
    return sorted({action for one in some for action in as_list(one["Action"])})


STATEMENTS, BUCKET = statements("remote-policy"), statements("remote-policy-bucket")
ACTIONS = actions(STATEMENTS)
UNSEEN = {
    # AWS itself calls it, the first time that an account asks for a spot machine or such an alarm.
    "iam:CreateServiceLinkedRole",
}
# Without these, fab says "unknown" of a price, the quota or the account's plan.
UNNEEDED = {"freetier:GetAccountPlanState", "pricing:GetProducts", "servicequotas:GetServiceQuota"}
READING = ("Describe", "Get", "List")


def from_plan_to_teardown(run: Run) -> None:
    """Everything that `fab` asks AWS for."""
    run.instances = 2
    run.save()
    make_instance(run, make_plan(run, run.cloud()))
    if run.uri:
        fetch_once(run)
    run.cloud().admit(run.cloud().group(run.label), "192.0.2.9/32")
    list_runs(None)
    cloud, first = run.cloud(), run.members[0].id
    (disk,) = (
        one["VolumeId"]
        for one in cloud.listed("volume", RUN, run.name)
        if one["Attachments"][0]["InstanceId"] == first
    )
    cloud.keep_volume(run.members[1].id, keep=False)
    cloud.terminate([first])
    if not run.uri:  # else it goes with its machine
        cloud.attach(disk, run.members[1].id, "/dev/sdf")
        cloud.detach(disk, run.members[1].id)
    teardown(run.name, None, force=True)


def test_the_policy_is_enough(run, cloud_api):
    cloud_api.permitted = set(ACTIONS)
    from_plan_to_teardown(run)
    assert not cloud_api.resources()


def test_with_a_bucket_both_policies_are(run, cloud_api, store):
    run.results_uri = f"s3://{store.name}/trainings"
    manifest = {"files": [], "complete": False, "job": {}, "time": 0.0}
    store.write(f"trainings/{run.name}/manifest.json", json.dumps(manifest).encode())
    cloud_api.permitted = {*ACTIONS, *actions(BUCKET)}
    from_plan_to_teardown(run)
    assert not cloud_api.resources()
    asked = {one for call in cloud_api.calls for one in call.permissions}
    assert set(actions(BUCKET)) - asked == {"iam:PassRole"}  # by RunInstances


@pytest.mark.slow
@pytest.mark.parametrize("action", [one for one in ACTIONS if one not in UNSEEN | UNNEEDED])
def test_without_any_of_its_actions_something_is_refused(run, cloud_api, action):
    cloud_api.permitted = set(ACTIONS) - {action}
    with pytest.raises(UserError, match=r"lack a permission: see docs/remote-policy\.json"):
        from_plan_to_teardown(run)


@pytest.mark.parametrize("action", sorted(UNNEEDED))
def test_some_answers_are_merely_unknown(run, cloud_api, action):
    cloud_api.permitted = set(ACTIONS) - {action}
    plan = make_plan(run, run.cloud())
    unknown = [text for _, text in plan.rows if text.startswith("unknown")]
    assert len(unknown) == 1


def test_only_some_types_may_be_started():
    (statement,) = (one for one in STATEMENTS if one["Sid"] == "StartTaggedInstances")
    allowed = statement["Condition"]["StringLike"]["ec2:InstanceType"]
    assert "c5*" in allowed
    assert not any(fnmatch("x1e.32xlarge", one) or fnmatch("u-24tb1.metal", one) for one in allowed)


def test_it_is_of_no_one_partition():
    both = STATEMENTS + BUCKET
    resources = [one for statement in both for one in as_list(statement["Resource"])]
    assert all(one == "*" or one.startswith("arn:*:") for one in resources)


def test_what_changes_anything_is_permitted_for_own_things_alone():
    for statement in STATEMENTS + BUCKET:
        assert statement["Effect"] == "Allow"
        names = [action.partition(":")[2] for action in as_list(statement["Action"])]
        assert not any("*" in name for name in names)
        if not all(name.startswith(READING) for name in names):
            limited = "*" not in as_list(statement["Resource"]) or "Condition" in statement
            assert limited, statement["Sid"]


def test_what_is_ended_removed_or_opened_must_have_the_runs_tag():
    (statement,) = (one for one in STATEMENTS if "ec2:TerminateInstances" in one["Action"])
    assert statement["Condition"] == {"Null": {"aws:ResourceTag/mmattn:run": "false"}}
    for action in (
        *("AuthorizeSecurityGroupIngress", "DeleteSecurityGroup"),
        *("DeleteKeyPair", "DeletePlacementGroup", "DeleteVolume", "AttachVolume"),
        "DetachVolume",
        "ModifyInstanceAttribute",
    ):
        assert [one for one in STATEMENTS if f"ec2:{action}" in one["Action"]] == [statement]


def test_what_is_made_has_the_tag_from_the_start(run, cloud_api):
    """The policy lets nobody tag later: each making call carries the tag itself."""
    from_plan_to_teardown(run)
    making = {
        *("CreateSecurityGroup", "CreatePlacementGroup", "ImportKeyPair"),
        *("RunInstances", "PutMetricAlarm"),
    }
    made = [call for call in cloud_api.calls if call.action in making]
    assert {call.action for call in made} == making
    for call in made:
        assert "mmattn:run" in str(call.parameters)
    assert "CreateTags" not in {call.action for call in cloud_api.calls}
