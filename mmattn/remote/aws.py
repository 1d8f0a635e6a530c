"""One AWS session a process, and AWS's errors in plain words."""

import functools
import os
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

# The AWS CLI's: whoever gave it an MFA code is not asked again here before its session ends.
ROLE_SESSIONS = "~/.aws/cli/cache"
CONFIG = botocore.config.Config(
    retries={"mode": "standard", "max_attempts": 6}, connect_timeout=10, read_timeout=30
)

_THROTTLED = "RequestLimitExceeded", "Throttling", "ThrottlingException"
_WORDS = {  # for AWS's codes
    ("InsufficientInstanceCapacity",): "AWS has no such machine free now: try later, another "
    "--region, or another --instance-type",
    ("VcpuLimitExceeded", "MaxSpotInstanceCountExceeded", "InstanceLimitExceeded"): "the "
    "account's limit is reached: ask for more under Service Quotas, EC2, or choose a smaller "
    "--instance-type",
    ("SpotMaxPriceTooLow",): "the spot price is above the on-demand price, the most that is "
    "offered: deploy without --spot",
    _THROTTLED: "AWS throttles this account's requests: try again in some minutes",
    ("ExpiredToken", "ExpiredTokenException"): "the AWS credentials have expired: log in again "
    "(`aws sso login`)",
    ("RequestExpired",): "the AWS credentials have expired or this computer's clock is wrong",
    ("AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException"): "AWS does not accept "
    "these credentials here: they are wrong, the account has not enabled this region (`aws account "
    "list-regions` shows which it has), or this computer's clock is wrong",
    ("SignatureDoesNotMatch",): "AWS does not accept these credentials: the secret key is wrong, "
    "or this computer's clock",
    ("UnauthorizedOperation", "AccessDenied", "AccessDeniedException"): "these credentials lack a "
    "permission: see docs/remote-policy.json",
    ("InvalidInstanceType",): "there is no such --instance-type in this region",
    ("Unsupported",): "this --instance-type is not offered in this region or zone",
    ("IdempotentParameterMismatch",): "an earlier start of this machine was asked for with other "
    "parameters: `fab teardown` first",
    ("NoSuchBucket",): "there is no such bucket: `aws s3 mb s3://BUCKET --region REGION` makes one",
    ("OptInRequired",): "the account is not signed up for EC2 in this region",
    ("PendingVerification",): "AWS still verifies the account: try again when its e-mail has come",
}
_REASONS = {code: reason for codes, reason in _WORDS.items() for code in codes}


class CloudError(RemoteError):
    """AWS refused, or did not answer.

    Attributes:
        code: its own word for why.
        refused: it is certain that nothing was done.
    """

    def __init__(self, message: str, code: str = "", refused: bool = False):
        super().__init__(message)
        self.code, self.refused = code, refused


@functools.cache
def session() -> boto3.Session:
    """The process's session: it finds credentials, and asks for an MFA code, once."""
    warnings.simplefilter("error", GetPassWarning)  # where a code would be shown, none is asked for
    made = botocore.session.get_session()
    roles = made.get_component("credential_provider").get_provider("assume-role")
    roles.cache = JSONFileCache(os.path.expanduser(ROLE_SESSIONS))
    return boto3.Session(botocore_session=made)


@functools.cache
def client(service: str, region: str | None = None) -> Any:
    """A service's client, made once, which takes a moment; without a region, the user's own."""
    region = region or os.environ.get("AWS_REGION")  # which boto3 does not read
    return session().client(service, region_name=region, config=CONFIG)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn boto3's errors into one plain message each.

    Raises:
        CloudError: AWS refuses or does not answer.
        UserError: there are no credentials, or no region.
    """
    try:
        yield
    except failures.ClientError as error:
        code = error_code(error)
        # Families of codes, as InvalidAMIID.NotFound, are explained by AWS's own message.
        message = error.response["Error"].get("Message", "")
        reason = _REASONS.get(code)
        refusal = f"{error.operation_name}: {code}"
        text = f"{reason} ({refusal}: {message[:300]})" if reason else f"AWS: {refusal}: {message}"
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        # AWS counts a lack of capacity among its own failures (5xx).
        refused = 400 <= status < 500 or code.startswith("Insufficient")
        refused &= code not in ("IdempotentParameterMismatch", *_THROTTLED)
        raise CloudError(f"{what}: {text}", code, refused) from error
    except failures.NoCredentialsError as error:
        raise UserError(
            "AWS: expected credentials in ~/.aws, the environment or AWS_PROFILE, found none: "
            "`aws configure` or `aws sso login` makes them"
        ) from error
    except failures.PartialCredentialsError as error:
        half = error.kwargs
        raise UserError(
            f"AWS: expected a pair of credentials, found half a pair: {half['provider']} lacks "
            f"{half['cred_var']}"
        ) from error
    except (failures.SSOError, failures.TokenRetrievalError) as error:
        profile = os.environ.get("AWS_PROFILE", "default")
        raise UserError(
            f"AWS: the single sign-on has expired: `aws sso login --profile {profile}`"
        ) from error
    except (EOFError, GetPassWarning) as error:
        raise UserError(
            "AWS: the profile's role needs an MFA code, and there is no terminal to ask at: call "
            "`aws sts get-caller-identity` at one; its session counts here until it ends"
        ) from error
    except failures.NoRegionError as error:
        raise UserError("AWS: expected a --region, an AWS_REGION or one in ~/.aws") from error
    except (failures.EndpointConnectionError, failures.ConnectTimeoutError) as error:
        where = error.kwargs["endpoint_url"]
        raise CloudError(
            f"{what}: no connection to {where}: is this computer online, and is that a region?"
        ) from error
    except (failures.BotoCoreError, ParserError, ValueError) as error:  # ValueError: a bad address
        raise CloudError(f"{what}: {str(error)[:300]}") from error


@contextmanager
def suppressed(*codes: str) -> Iterator[None]:
    """Pass over these of AWS's refusals: what was wanted is so already."""
    try:
        yield
    except failures.ClientError as error:
        if error_code(error) not in codes:
            raise


def persistent(*codes: str, attempts: int = 20) -> tenacity.Retrying:
    """Calls again, every three seconds, what AWS refuses with one of these codes."""

    def passes(error: BaseException) -> bool:
        if not isinstance(error, failures.ClientError):
            return False
        # A new instance profile that is not known yet has no code of its own.
        message = error.response["Error"].get("Message", "")
        return error_code(error) in codes or "iamInstanceProfile" in message

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(passes),
        wait=tenacity.wait_fixed(3),
        stop=tenacity.stop_after_attempt(attempts),
        reraise=True,
    )


def error_code(error: failures.ClientError) -> str:
    """AWS's word for a refusal."""
    return error.response["Error"]["Code"]
