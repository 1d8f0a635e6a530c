"""One session a process, and what is wrong with credentials in one line."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmattn.errors import UserError
from mmattn.remote.cloud import Cloud

PROGRAM = """
import sys
import time
from mmattn.errors import UserError
from mmattn.remote.cloud import Cloud
try:
    cloud = Cloud("us-east-1")
    print(cloud.caller(), len(cloud.instances()))
except UserError as error:
    print(error)
"""
ROLE = """
[profile trainer]
role_arn = arn:aws:iam::123456789012:role/trainer
source_profile = base
mfa_serial = arn:aws:iam::123456789012:mfa/me
[profile base]
aws_access_key_id = AKIATESTING
aws_secret_access_key = secret
[profile sso]
sso_start_url = https://example.org/start
sso_region = us-east-1
sso_account_id = 123456789012
sso_role_name = trainer
"""


@pytest.fixture
def profile(cloud_api, tmp_path, monkeypatch):
    """Use a profile of ROLE in a home with nothing else in it."""

    def use(name: str) -> None:
        (tmp_path / "config").write_text(ROLE)
        for key, value in cloud_api.environment.items():
            monkeypatch.setenv(key, value)
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(key)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", name)
        monkeypatch.setenv("HOME", str(tmp_path))

    return use


@pytest.mark.slow
def test_an_mfa_code_is_asked_for_once(profile, cloud_api, tmp_path):
    profile("trainer")
    keyboard, terminal = pty.openpty()

    def call(stdin: int) -> str:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # away from this computer's terminal
            cwd=Path(__file__).parents[2],
        )
        while process.poll() is None:
            os.write(keyboard, b"123456\n")  # what was typed before the question is not read
            time.sleep(1)
        return process.communicate()[0].decode()

    assert "assumed-role/trainer 0" in call(terminal)
    assert "assumed-role/trainer 0" in call(subprocess.DEVNULL)  # of another process
    codes = [call.parameters for call in cloud_api.calls if call.action == "AssumeRole"]
    assert [one["TokenCode"] for one in codes] == ["123456"]
    for kept in (tmp_path / ".aws/cli/cache").iterdir():
        assert kept.stat().st_mode & 0o777 == 0o600
        kept.unlink()
    text = call(subprocess.DEVNULL)
    assert text.startswith("AWS: the profile's role needs an MFA code, and there is no terminal")
    assert text.count("\n") == 1


def test_a_sign_on_that_has_expired_names_the_command(profile):
    profile("sso")
    with pytest.raises(UserError, match="has expired: run `aws sso login --profile sso`"):
        Cloud("us-east-1").caller()
