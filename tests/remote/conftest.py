"""An EC2 that answers over HTTP and boots real Linux machines, and machines without EC2."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import botocore.loaders
import pytest

from mmattn.remote import aws, deploy, launch, teardown
from mmattn.remote.cloud import Cloud
from mmattn.remote.runs import Run
from tests.remote.buckets import Store
from tests.remote.machines import image
from tests.remote.machines.cloud_api import REGION, CloudApi
from tests.remote.machines.guest import HandMade
from tests.remote.machines.hypervisor import Hypervisor
from tests.remote.machines.network import Network

# Of fixtures that boot machines, or need root, ssh, rsync or ip.
MACHINES = {"machine_image", "machine", "machine_in", "deploying", "small_disk", "memory_limit"}
_LOADER = botocore.loaders.Loader()


def pytest_collection_modifyitems(items):
    """Marks what needs a machine; it may first have to be made, and boot beside others."""
    for item in items:
        if MACHINES & set(getattr(item, "fixturenames", ())):
            item.add_marker("machine")
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(autouse=True)
def one_loader(monkeypatch) -> None:
    """Descriptions of services are read once for all tests, which takes much of a client's time."""
    monkeypatch.setattr("botocore.session.create_loader", lambda _: _LOADER)


@pytest.fixture(autouse=True)
def own_session() -> Iterator[None]:
    """Each test is a process of its own to AWS's libraries."""
    yield
    new_session()


def new_session() -> None:
    """Forget the session of AWS's libraries, and all clients."""
    aws.session.cache_clear()
    aws.client.cache_clear()


@pytest.fixture(scope="session")
def machine_image() -> Callable[..., Path]:
    """The disk that machines boot from, of a release of Debian; skips where none can boot."""
    if obstacle := image.obstacle():
        pytest.skip(obstacle)
    return image.image


@pytest.fixture
def release(request) -> str:
    """The Debian of the machines; a test may ask for another."""
    return getattr(request, "param", image.RELEASES[0])


@pytest.fixture(scope="session")
def wheelhouse() -> Path:
    """Wheels of the project's requirements: what machines see at /wheelhouse when a test asks."""
    return image.wheelhouse()


@pytest.fixture(scope="session")
def network(machine_image) -> Iterator[Network]:
    """Between this computer, the caller, and machines."""
    network = Network()
    yield network
    network.close()


@pytest.fixture(scope="session")
def boot_guest(machine_image, network, tmp_path_factory):
    """`with boot_guest(wheelhouse, release) as guest`: a HandMade machine, also for fixtures."""

    @contextmanager
    def boot(
        wheelhouse: Path | None = None, release: str = image.RELEASES[0]
    ) -> Iterator[HandMade]:
        disk, folder = machine_image(release), tmp_path_factory.mktemp("keys")
        guest = HandMade(network, network.new_address(), disk, folder, wheelhouse)
        try:
            yield guest
        finally:
            guest.delete()

    return boot


@pytest.fixture
def guest(boot_guest) -> Iterator[HandMade]:
    """A machine that runs, without EC2: `.address`, `.user`, `.key_file`, `.known_hosts_line`."""
    with boot_guest() as guest:
        yield guest


@pytest.fixture(scope="session")
def _api_server() -> Iterator[CloudApi]:
    api = CloudApi()
    yield api
    api.close()


@pytest.fixture
def cloud_api(_api_server) -> CloudApi:
    """EC2's API, empty; its instances are names only. For programs: `.environment`."""
    _api_server.reset()
    return _api_server


@pytest.fixture
def store(cloud_api, monkeypatch) -> Store:
    """A bucket that this process may use, with files of others in it."""
    for name, value in cloud_api.environment.items():
        monkeypatch.setenv(name, value)
    return Store(cloud_api.client("s3"))


@pytest.fixture(autouse=True)
def no_tools(request, monkeypatch) -> None:
    """Programs for transfers are needed only where there is a machine to transfer to."""
    if request.node.get_closest_marker("machine") is None:
        monkeypatch.setattr(deploy, "check_tools", lambda: None)
        monkeypatch.setattr(deploy, "survey", lambda _: {})


@pytest.fixture
def run(cloud_api, tmp_path, monkeypatch) -> Run:
    """A run that is asked for, by this process, in an account with nothing in it."""
    for name, value in cloud_api.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch, "own_network", lambda: "192.0.2.7/32")
    monkeypatch.setattr(teardown, "SETTLE_S", 0)
    monkeypatch.chdir(tmp_path)
    owner = Cloud(REGION).caller()
    new_session()  # without its credentials, if a test takes those away
    cloud_api.calls.clear()
    return Run(
        *("no_aug-20260101-000000-aaaa", "no_aug"),
        region=REGION,
        instance_type="c5.24xlarge",
        owner=owner,
    )


@pytest.fixture
def cloud(request, cloud_api, machine_image, release, network) -> Iterator[Hypervisor]:
    """EC2's API (`cloud.api`), a machine for each instance; with wheels if the test asks."""
    wheels = "wheelhouse" in request.fixturenames and request.getfixturevalue("wheelhouse")
    hypervisor = Hypervisor(cloud_api, network, machine_image(release), wheels or None)
    yield hypervisor
    hypervisor.close()
