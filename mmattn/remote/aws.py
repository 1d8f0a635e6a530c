"""One AWS session per process, and AWS's errors in plain words."""

import functools
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import GetPassWarning
from typing import Any

import boto3
import botocore.config
import botocore.exceptions as failures
import botocore.session
import tenacity
from botocore.credentials import JSONFileCache
from botocore.parsers import ResponseParserError as ParserError

from mmattn.errors import UserError
from mmattn.remote.ssh import RemoteError

# The AWS CLI's cache: an MFA code given to the CLI counts here until its session ends.
ROLE_SESSIONS = "~/.aws/cli/cache"
CONFIG = botocore.config.Config(
    retries={"mode": "standard", "max_attempts": 6}, connect_timeout=10, read_timeout=30
)

_THROTTLED = "RequestLimitExceeded|Throttling"
_ADVICE = {  # by AWS's error code, where its own message does not say what to do
    "Expired": "the AWS credentials have expired, or this computer's clock is wrong: log in again "
    "(`aws sso login`)",
    "AuthFailure|InvalidClientTokenId|SignatureDoesNotMatch|UnrecognizedClient": "AWS does not "
    "accept these credentials here: they are wrong, the account has not enabled this region, or "
    "this computer's clock is wrong",
    "UnauthorizedOperation|AccessDenied": "these credentials lack a permission: see "
    "docs/remote-policy.json, for buckets docs/remote-policy-bucket.json",
    "NoSuchBucket": "there is no such bucket: `aws s3 mb s3://BUCKET --region REGION` makes one",
}


class CloudError(RemoteError):
    """AWS refused, with its own `code`, or did not answer; `refused`: certainly nothing changed."""

    def __init__(self, message: str, code: str = "", refused: bool = False):
        super().__init__(message)
        self.code, self.refused = code, refused


@functools.cache
def session() -> boto3.Session:
    """The process's session: finds credentials, and asks for an MFA code, once."""
    warnings.simplefilter("error", GetPassWarning)  # do not ask where the code would be shown
    made = botocore.session.get_session()
    roles = made.get_component("credential_provider").get_provider("assume-role")
    roles.cache = JSONFileCache(os.path.expanduser(ROLE_SESSIONS))
    return boto3.Session(botocore_session=made)


@functools.cache
def client(service: str, region: str | None = None) -> Any:
    """A service's client, cached because making one is slow; by default of the user's region."""
    region = region or os.environ.get("AWS_REGION")  # boto3 does not read it
    return session().client(service, region_name=region, config=CONFIG)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn boto3's errors, including missing credentials or region, into a CloudError."""
    try:
        yield
    except UserError:
        raise
    except failures.ClientError as error:
        code = error_code(error)
        text = f"{error.operation_name}: {code}: {error.response['Error'].get('Message', '')}"[:400]
        advice = [one for codes, one in _ADVICE.items() if re.search(codes, code)]
        text = f"{advice[0]} ({text})" if advice else text
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        # AWS reports a lack of capacity as its own failure (5xx).
        refused = 400 <= status < 500 or code.startswith("Insufficient")
        refused &= not re.search(f"IdempotentParameterMismatch|{_THROTTLED}", code)
        raise CloudError(f"{what}: {text}", code, refused) from error
    except (failures.SSOError, failures.TokenRetrievalError) as error:
        profile = os.environ.get("AWS_PROFILE", "default")
        raise CloudError(
            f"AWS: the single sign-on has expired: run `aws sso login --profile {profile}`"
        ) from error
    except (EOFError, GetPassWarning) as error:
        raise CloudError(
            "AWS: the profile's role needs an MFA code, and there is no terminal to ask at: run "
            "`aws sts get-caller-identity` in one; fab uses its session until it ends"
        ) from error
    except failures.NoRegionError as error:
        raise CloudError(
            "AWS: expected a region: `export AWS_REGION=eu-central-1`, or `aws configure`"
        ) from error
    except failures.NoCredentialsError as error:
        raise CloudError(
            "AWS: found no credentials: `aws configure`, or `export AWS_PROFILE=NAME`"
        ) from error
    except (failures.BotoCoreError, ParserError, ValueError) as error:  # ValueError: a bad address
        raise CloudError(f"{what}: {str(error)[:300]}") from error


def explains(cls: type) -> type:
    """Wrap each method of a class in `explained`."""
    for name, method in [*vars(cls).items()]:
        if callable(method):
            setattr(cls, name, explained("AWS")(method))
    return cls


@contextmanager
def suppressed(*codes: str) -> Iterator[None]:
    """Ignore AWS's errors with these codes: the wanted state already holds."""
    try:
        yield
    except failures.ClientError as error:
        if error_code(error) not in codes:
            raise


def persistent(*codes: str, attempts: int = 20) -> tenacity.Retrying:
    """Retries, every three seconds, calls that AWS refuses with one of these codes."""

    def passes(error: BaseException) -> bool:
        if not isinstance(error, failures.ClientError):
            return False
        # A new instance profile that EC2 does not know yet has no error code of its own.
        message = error.response["Error"].get("Message", "")
        return error_code(error) in codes or "iamInstanceProfile" in message

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(passes),
        wait=tenacity.wait_fixed(3),
        stop=tenacity.stop_after_attempt(attempts),
        reraise=True,
    )


def error_code(error: failures.ClientError) -> str:
    """AWS's code for an error."""
    return error.response["Error"]["Code"]
