"""The bucket of --results and --data, from this computer: checks, and the machine's permissions.

A machine gets access by the run's instance profile, which permits the run's URIs and nothing else.
"""

import json
import re

from mmattn.errors import UserError
from mmattn.remote.agent.bucket import Bucket
from mmattn.remote.aws import client, explained, suppressed

PROBE = ".mmattn-probe"
URI = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/(?!\.\.?(/|$))[A-Za-z0-9_.=+@-]+)+/?")


def parse_uri(option: str, text: str) -> str:
    """The URI, without a trailing slash; UserError if it is not valid."""
    if not URI.fullmatch(text):
        raise UserError(
            f"{option}: expected s3://BUCKET/PREFIX, with only letters, digits and _.=+@- between "
            f"the slashes, found {text!r}"
        )
    return text.rstrip("/")


def check(option: str, uri: str, region: str, write: bool) -> tuple[int, int]:
    """The number of files there and their bytes; UserError if a machine cannot read or write."""
    with explained(f"{option} {uri}"):
        bucket = Bucket(uri, client("s3"))
        sizes = [one["Size"] for name, one in bucket.list().items() if not name.endswith("/")]
        found = bucket.client.head_bucket(Bucket=bucket.bucket).get("BucketRegion", region)
        if write:
            bucket.put(PROBE, b"")
            bucket.delete([PROBE])
    if found != region:
        raise UserError(
            f"{option} {uri}: expected a bucket in the machine's region, {region}, found one in "
            f"{found}: use --region {found}"
        )
    if not write and not sizes:
        raise UserError(f"{option} {uri}: expected files, found none")
    return len(sizes), sum(sizes)


def is_complete(uri: str) -> bool:
    """Whether all results of a run are there."""
    with explained(uri):
        manifest = Bucket(uri, client("s3")).manifest()
    return bool(manifest and manifest["complete"])


def ensure_profile(label: str, results: str | None, data: str | None, tags: dict[str, str]) -> None:
    """Create the instance profile, and its role, that give machines access to these URIs."""
    with explained(f"role {label}"):
        iam = client("iam")
        partition = iam.meta.partition
        listed = [{"Key": key, "Value": value} for key, value in tags.items()]
        service = "ec2.amazonaws.com" + (".cn" if partition == "aws-cn" else "")
        trust = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": service}}
        with suppressed("EntityAlreadyExists"):
            iam.create_role(
                RoleName=label, AssumeRolePolicyDocument=_document([trust]), Tags=listed
            )
        permitted = _document(_statements(results, data, partition))
        iam.put_role_policy(RoleName=label, PolicyName="bucket", PolicyDocument=permitted)
        with suppressed("EntityAlreadyExists"):
            iam.create_instance_profile(InstanceProfileName=label, Tags=listed)
        with suppressed("LimitExceeded"):  # a profile has at most one role
            iam.add_role_to_instance_profile(InstanceProfileName=label, RoleName=label)
        iam.get_waiter("instance_profile_exists").wait(InstanceProfileName=label)


def _document(statements: list[dict]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def _statements(results: str | None, data: str | None, partition: str) -> list[dict]:
    """A machine may read and list under both URIs, and write and delete under the results'."""
    made = []
    for uri, verbs in ((results, ("Get", "Put", "Delete")), (data, ("Get",))):
        if uri is not None:
            bucket, _, prefix = uri.removeprefix("s3://").partition("/")
            arn, actions = f"arn:{partition}:s3:::{bucket}", [f"s3:{verb}Object" for verb in verbs]
            under = {"StringLike": {"s3:prefix": f"{prefix}/*"}}
            objects = {"Action": actions, "Resource": f"{arn}/{prefix}/*"}
            listing = {"Action": "s3:ListBucket", "Resource": arn, "Condition": under}
            made += [{"Effect": "Allow", **one} for one in (objects, listing)]
    return made


def delete_profile(label: str) -> None:
    """Delete the run's instance profile and role, if they exist."""
    iam, profile, role = client("iam"), {"InstanceProfileName": label}, {"RoleName": label}
    for step, names in (
        (iam.remove_role_from_instance_profile, profile | role),
        (iam.delete_instance_profile, profile),
        (iam.delete_role_policy, role | {"PolicyName": "bucket"}),
        (iam.delete_role, role),
    ):
        with explained(f"role {label}"), suppressed("NoSuchEntity"):
            step(**names)


def profile_remains(label: str) -> dict[str, list[str]]:
    """The run's role, if it exists: it is made before the profile and deleted after it."""
    with explained(f"role {label}"), suppressed("NoSuchEntity"):
        client("iam").get_role(RoleName=label)
        return {"role": [label]}
    return {}
