"""The disks that guests boot from and the Python packages they install: each made once.

Like Amazon Linux 2023, Debian 11 has Python 3.9 for its own programs, and the one for training
beside it under its own name. Debian 11 has no such package: it is built from Debian 12's source.
Debian 12 has systemd 252, as Amazon Linux 2023, and one Python for both.
"""

import configparser
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from mmattn.remote.send import constraints

CACHE = Path("~/.cache/mmattn-test").expanduser()
RELEASES = ("bullseye", "bookworm")  # Debian 11, where guests boot if no other is said, and 12
RELEASE, PYTHON = RELEASES[0], "3.11"
BUILD = f"""
sed -n 's/^deb \\(.*\\) {RELEASE} main$/deb-src \\1 bookworm main/p' /etc/apt/sources.list \
    > /etc/apt/sources.list.d/source.list
apt-get -qq update
apt-get -qq source --download-only python{PYTHON}
tar xzf python*.orig.tar.gz
cd Python-*
./configure --prefix=/usr --with-ensurepip=no --disable-test-modules --without-static-libpython
make -j$(nproc)
make altinstall DESTDIR=/out
"""
# As an installer does it, and Amazon: programs of /bin are found in /usr/bin too.
MERGE = 'for it in bin sbin lib lib64; do mkdir -p "$1/usr/$it"; ln -s "usr/$it" "$1/$it"; done'
BUILD_PACKAGES = (
    *("gcc", "libc6-dev", "make", "zlib1g-dev", "libssl-dev", "libffi-dev", "libbz2-dev"),
    *("liblzma-dev", "libsqlite3-dev"),
)
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "cloud-init", "openssh-server", "rsync", "sudo"),
    *("python3", "iproute2", "ca-certificates", "procps"),
)
USER = "ec2-user"
FILES = {
    "etc/cloud/cloud.cfg.d/90_image.cfg": (
        "datasource_list: [NoCloud]\n"
        "network: {config: disabled}\n"
        "locale: C.UTF-8\n"
        "manage_etc_hosts: true\n"
        "system_info:\n"
        f"  default_user: {{name: {USER}, shell: /bin/bash, lock_passwd: true,\n"
        '    sudo: ["ALL=(ALL) NOPASSWD:ALL"]}\n'
    ),
    "etc/pip.conf": "[global]\nno-index = true\nfind-links = /wheelhouse\n",
}
_PYTHON = (RELEASE, BUILD, *BUILD_PACKAGES)
TOOLS = {  # of what runs here, by the Debian package that has it
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "rsync": "rsync",
    "ssh": "openssh-client",
}


def obstacle() -> str | None:
    """Why guests cannot boot here; None if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "booting a machine takes Linux and root"
    missing = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
    return f"booting a machine takes {', '.join(missing)}" if missing else None


def image(release: str = RELEASE) -> Path:
    """The root file system of a Debian with cloud-init and sshd; guests only read it."""
    packages = PACKAGES if release == RELEASE else (*PACKAGES, "python3-venv")
    recipe = _PYTHON if release == RELEASE else (release,)

    def build(folder: Path) -> None:
        _install(release, packages, folder)
        if release == RELEASE:
            shutil.copytree(python(), folder, symlinks=True, dirs_exist_ok=True)
        for name, text in FILES.items():
            (folder / name).write_text(text)
        for path in folder.glob("etc/ssh/ssh_host_*"):
            path.unlink()

    return _made_once("image", [*recipe, MERGE, *packages, *FILES, *FILES.values()], build)


def python() -> Path:
    """The files of the Python that guests train with, as they lie in their root."""

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=CACHE) as root:
            _install(RELEASE, BUILD_PACKAGES, root)
            _run("chroot", root, "sh", "-ec", BUILD)
            shutil.copytree(f"{root}/out", folder, symlinks=True, dirs_exist_ok=True)

    return _made_once("python", [*_PYTHON], build)


def _install(release: str, packages: Sequence[str], folder: Path | str) -> None:
    """A Debian of these packages, and what they need, in a folder that is empty."""
    options = ["--variant=minbase", f"--include={','.join(packages)}", f"--setup-hook={MERGE}"]
    _run("mmdebstrap", *options, release, folder)


def wheelhouse() -> Path:
    """Wheels of all that the project needs, for a guest's Python: guests reach no index."""
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[3] / "setup.cfg")
    wanted = [*setup["options"]["install_requires"].split(), "boto3", "setuptools>=77", "wheel"]
    versions = constraints()

    def build(folder: Path) -> None:
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:")
        limits = CACHE / "constraints.txt"
        limits.write_text(versions)
        limited = f"--constraint={limits}"
        _run(*pip, f"--python-version={PYTHON}", f"--dest={folder}", limited, *wanted)

    return _made_once("wheelhouse", [PYTHON, *wanted, versions], build)


def _made_once(kind: str, recipe: list[str], build: Callable[[Path], None]) -> Path:
    """The folder of this recipe in the cache; it is whole or not there, whoever else makes it."""
    digest = hashlib.sha256("\0".join(recipe).encode()).hexdigest()
    folder = CACHE / f"{kind}-{digest[:12]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{kind}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            _run("rm", "--recursive", "--force", "--one-file-system", partial)
            partial.mkdir(mode=0o755)
            build(partial)
            partial.rename(folder)
    return folder


def _run(*command: object) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, f"{command[0]}: {(done.stdout + done.stderr)[-4000:]}"
