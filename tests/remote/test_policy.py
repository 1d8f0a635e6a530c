"""docs/remote-policy.json permits what remote training does, and nothing besides."""

import json
from pathlib import Path

import pytest

from mmattn.errors import UserError
from mmattn.remote.launch import make_instance
from mmattn.remote.plan import make_plan
from mmattn.remote.runs import Run
from mmattn.remote.teardown import list_runs, teardown

STATEMENTS = json.loads(
    (Path(__file__).parents[2] / "docs/remote-policy.json").read_text(encoding="utf-8")
)["Statement"]


def as_list(one: str | list[str]) -> list[str]:
    return [one] if isinstance(one, str) else one


ACTIONS = sorted({action for one in STATEMENTS for action in as_list(one["Action"])})
UNSEEN = {
    # AWS itself calls it, the first time that an account asks for a spot machine or such an alarm.
    "iam:CreateServiceLinkedRole",
}
READING = ("Describe", "Get", "List")


def from_plan_to_teardown(run: Run) -> None:
    """Everything that `fab` asks AWS for."""
    run.instances = 2
    run.save()
    make_instance(run, make_plan(run, run.cloud()))
    run.cloud().admit(run.group_id, "192.0.2.9/32")
    list_runs(None)
    teardown(run.name, None, force=True)


@pytest.mark.parametrize("spot", [False, True])
def test_the_policy_is_enough(run, cloud_api, spot):
    run.spot = spot
    cloud_api.permitted = set(ACTIONS)
    from_plan_to_teardown(run)
    assert not cloud_api.resources()


@pytest.mark.slow
@pytest.mark.parametrize("action", [one for one in ACTIONS if one not in UNSEEN])
def test_without_any_of_its_actions_something_is_refused(run, cloud_api, action):
    run.spot = True
    cloud_api.permitted = set(ACTIONS) - {action}
    with pytest.raises(UserError, match=r"lack a permission: see docs/remote-policy\.json"):
        from_plan_to_teardown(run)


def test_what_changes_anything_is_permitted_for_own_things_alone():
    for statement in STATEMENTS:
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
        *("DeleteKeyPair", "DeletePlacementGroup"),
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
