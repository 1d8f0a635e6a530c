"""What S3's requests ask for, and a check that S3 makes and moto does not."""

import base64
import hashlib
from urllib.parse import parse_qs, unquote

PERMISSIONS = {  # where they are not called as the request is
    "DeleteObjects": "DeleteObject",
    "HeadBucket": "ListBucket",
    "HeadObject": "GetObject",
    "ListObjectsV2": "ListBucket",
}


def parsed(environ: dict) -> tuple[str, dict[str, str]]:
    """Action and parameters of a request whose bucket stands in the path."""
    bucket, _, key = unquote(environ["PATH_INFO"]).lstrip("/").partition("/")
    query = parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
    method = environ["REQUEST_METHOD"].capitalize()
    if "delete" in query:
        action = "DeleteObjects"
    elif "list-type" in query:
        action = "ListObjectsV2"
    else:
        action = method + ("Object" if key else "Bucket")
    given = {"Bucket": bucket, "Key": key, "Prefix": query.get("prefix", [""])[0]}
    return action, {name: value for name, value in given.items() if value}


def is_damaged(environ: dict, body: bytes) -> bool:
    """Whether the content is not that of the checksum that came with it."""
    told = environ.get("HTTP_X_AMZ_CHECKSUM_SHA256")
    return told is not None and base64.b64decode(told) != hashlib.sha256(body).digest()
