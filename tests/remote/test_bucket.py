"""The bucket from the laptop: checks before money, results, and what the machine may."""

import fnmatch
import json

import boto3
import pytest

from mmattn.errors import UserError
from mmattn.remote import bucket
from mmattn.remote.agent import bucket as agent
from mmattn.remote.cloud import CloudError
from tests.remote.buckets import NAME, URI, here
from tests.remote.machines.cloud_api import REGION, Fault

DATA, LABEL, TAGS = f"s3://{NAME}/corpora/a", "mmattn-no_aug-20260101", {"mmattn:run": "one"}


@pytest.mark.parametrize("text", [URI, f"{URI}/", "s3://a.b-c/x/y_z=1@2+.3", "s3://abc/..x/x.."])
def test_a_uri(text):
    assert bucket.parse_uri("--results", text) == text.rstrip("/")


@pytest.mark.parametrize(
    "text",
    [
        *("", "bucket/x", "https://x/y", "s3://bucket", "s3://bucket/", "s3://Bucket/x"),
        *("s3://ab/x", "s3://bucket//x", "s3://bucket/x//y", "s3://bucket/x\n"),
        *("s3://bucket/../x", "s3://bucket/x/..", "s3://bucket/./x"),
        *("s3://bucket/*", "s3://bucket/${aws:x}", "s3://bucket/a?", "s3://bucket/a b"),
    ],
)
def test_no_uri(text):
    with pytest.raises(UserError, match=r"--data: expected s3://BUCKET/PREFIX, .* found"):
        bucket.parse_uri("--data", text)


# Before money


def test_a_bucket_that_can_be_written(store):
    before = store.read()
    assert bucket.check("--results", URI, REGION, write=True) == (1, len("the user's own"))
    assert store.read() == before


def test_data_are_counted(store):
    for name, content in {"a": b"123", "b/c": b"45", "b/": b""}.items():
        store.write(f"corpora/a/{name}", content)
    store.write("corpora/ab", b"other")
    assert bucket.check("--data", DATA, REGION, write=False) == (2, 5)


def test_no_data(store):
    with pytest.raises(UserError, match=f"--data {DATA}: expected files, found none"):
        bucket.check("--data", DATA, REGION, write=False)


def test_no_bucket(store):
    with pytest.raises(CloudError, match=r"no-such: there is no such bucket: `aws s3 mb s3://"):
        bucket.check("--results", "s3://nowhere/no-such", REGION, write=True)


@pytest.mark.parametrize("action", ["ListObjectsV2", "PutObject", "DeleteObject"])
def test_a_bucket_that_may_not_be_used(store, cloud_api, action):
    cloud_api.faults = [Fault(action, "AccessDenied")]
    with pytest.raises(CloudError, match=rf"--results {URI}: .*lack a permission.*{action}"):
        bucket.check("--results", URI, REGION, write=True)


def test_a_bucket_in_another_region(store):
    where = {"CreateBucketConfiguration": {"LocationConstraint": "eu-west-1"}}
    store.client.create_bucket(Bucket="bucket-there", **where)
    with pytest.raises(
        UserError, match=r"region, us-east-1, found one in eu-west-1: use --region eu"
    ):
        bucket.check("--results", "s3://bucket-there/x", REGION, write=True)


# What the machine may


@pytest.fixture
def iam(cloud_api, monkeypatch):
    """A client whose calls meet faults, the only one that is made."""
    for name, value in cloud_api.environment.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("iam")
    monkeypatch.setattr(bucket, "client", {"iam": client}.__getitem__)
    return client


def document(iam) -> dict:
    return iam.get_role_policy(RoleName=LABEL, PolicyName="bucket")["PolicyDocument"]


def test_the_role_permits_its_prefix_alone(iam):
    bucket.ensure_profile(LABEL, URI, DATA, TAGS)
    everything, here = f"arn:aws:s3:::{NAME}", "trainings/one/*"
    assert document(iam)["Statement"] == [
        {
            "Effect": "Allow",
            "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
            "Resource": f"{everything}/{here}",
        },
        {
            "Effect": "Allow",
            "Action": "s3:ListBucket",
            "Resource": everything,
            "Condition": {"StringLike": {"s3:prefix": here}},
        },
        {
            "Effect": "Allow",
            "Action": ["s3:GetObject"],
            "Resource": f"{everything}/corpora/a/*",
        },
        {
            "Effect": "Allow",
            "Action": "s3:ListBucket",
            "Resource": everything,
            "Condition": {"StringLike": {"s3:prefix": "corpora/a/*"}},
        },
    ]
    role = iam.get_role(RoleName=LABEL)["Role"]
    (trust,) = role["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"Service": "ec2.amazonaws.com"}
    assert role["Tags"] == [{"Key": "mmattn:run", "Value": "one"}]
    profile = iam.get_instance_profile(InstanceProfileName=LABEL)
    assert [one["RoleName"] for one in profile["InstanceProfile"]["Roles"]] == [LABEL]
    assert profile["InstanceProfile"]["Tags"] == role["Tags"]


def test_the_role_is_enough_for_the_machine(store, cloud_api, iam, tmp_path, monkeypatch):
    bucket.ensure_profile(LABEL, URI, DATA, TAGS)
    store.write("corpora/a/clip", b"1")
    cloud_api.calls.clear()
    for machine in ("old", "new"):
        (tmp_path / machine / "job").mkdir(parents=True)
        (tmp_path / machine / "run").mkdir(parents=True)
    (tmp_path / "old/run/config.json").write_text("{}")
    agent.push(tmp_path / "old/job", here())
    (tmp_path / "old/run/config.json").write_text("other")
    agent.push(tmp_path / "old/job", here())
    agent.pull(tmp_path / "new/job", here())
    agent.pull_data(here(DATA), tmp_path / "data")
    assert {call.action for call in cloud_api.calls} == {
        *("ListObjectsV2", "HeadObject", "GetObject", "PutObject", "DeleteObject")
    }
    statements = document(iam)["Statement"]
    for call in cloud_api.calls:
        if call.service == "s3":
            assert any(permits(one, call) for one in statements), call


def permits(statement: dict, call) -> bool:
    (action,) = call.permissions
    given = {name: call.parameters.get(name, "") for name in ("Bucket", "Key", "Prefix")}
    name = f"arn:aws:s3:::{given['Bucket']}" + (f"/{given['Key']}" if given["Key"] else "")
    under = statement.get("Condition", {"StringLike": {"s3:prefix": "*"}})["StringLike"]
    return (
        action in statement["Action"]
        and fnmatch.fnmatchcase(name, statement["Resource"])
        and fnmatch.fnmatchcase(given["Prefix"], under["s3:prefix"])
    )


def test_results_or_data_alone(iam):
    bucket.ensure_profile(LABEL, None, DATA, TAGS)
    actions = [one["Action"] for one in document(iam)["Statement"]]
    assert actions == [["s3:GetObject"], "s3:ListBucket"]
    bucket.ensure_profile(LABEL, URI, None, TAGS)
    assert "corpora" not in str(document(iam))


def test_in_china(iam, cloud_api, monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "cn-north-1")
    china = boto3.client("iam")
    monkeypatch.setattr(bucket, "client", lambda _: china)
    bucket.ensure_profile(LABEL, URI, None, TAGS)
    made = {call.action: call.parameters for call in cloud_api.calls}
    trust = json.loads(made["CreateRole"]["AssumeRolePolicyDocument"])["Statement"]
    assert trust[0]["Principal"] == {"Service": "ec2.amazonaws.com.cn"}
    permitted = json.loads(made["PutRolePolicy"]["PolicyDocument"])["Statement"]
    assert {one["Resource"].partition("s3")[0] for one in permitted} == {"arn:aws-cn:"}


def test_the_profile_is_made_and_removed_whatever_cuts_it(iam, cloud_api):
    """The command ends after each of its requests in turn, of which it does not hear."""

    def make():
        bucket.ensure_profile(LABEL, URI, None, TAGS)

    def remove():
        bucket.delete_profile(LABEL)

    for work, undo, kinds in ((make, remove, ["role"]), (remove, make, [])):
        undo()
        cloud_api.calls.clear()
        work()
        for action in [call.action for call in cloud_api.calls]:
            undo()
            cloud_api.faults = [Fault(action, "AccessDenied", done=True)]
            with pytest.raises(CloudError, match="AccessDenied"):
                work()
            work()
            assert bucket.profile_remains(LABEL) == {kind: [LABEL] for kind in kinds}
    assert not cloud_api.resources()


def test_what_was_made_until_a_refusal_is_told_and_removed(iam, cloud_api):
    for action in ("PutRolePolicy", "CreateInstanceProfile", "AddRoleToInstanceProfile"):
        cloud_api.faults = [Fault(action, "AccessDenied")]
        with pytest.raises(CloudError, match=f"role {LABEL}: .*lack a permission.*{action}"):
            bucket.ensure_profile(LABEL, URI, None, TAGS)
        assert bucket.profile_remains(LABEL)
        bucket.delete_profile(LABEL)
        assert not bucket.profile_remains(LABEL)
