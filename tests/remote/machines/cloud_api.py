"""EC2's API over HTTP: moto, and in front of it what moto leaves out and what can go wrong."""

import base64
import io
import itertools
import json
import logging
import math
import os
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import boto3
from moto import backends, settings
from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.models import amis, elastic_network_interfaces, instances, subnets
from moto.ec2.models.instances import StateReason
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from moto.utilities.utils import load_resource
from werkzeug.serving import make_server
from werkzeug.test import Client, run_wsgi_app
from werkzeug.wrappers import Response

from tests.remote.machines import s3

REGION = "us-east-1"
PRICES = {"c5.24xlarge": 4.08, "c5.large": 0.085, "g5.xlarge": 1.006, "gp3": 0.08}
USER_DATA_LIMIT = 16384
UNUSED_ADDRESS = "198.51.100.7"  # of the block for documentation
GONE = ("shutting-down", "terminated")
_ALWAYS_PERMITTED = {"sts:GetCallerIdentity"}
_OWN_KEY = "MACHINES"  # of questions that are not the tested program's
_JSON = ("freetier", "monitoring", "pricing", "servicequotas", "ssm")
_STATUS = {
    "InsufficientInstanceCapacity": 500,
    "InternalError": 500,
    "RequestLimitExceeded": 503,
    "UnauthorizedOperation": 403,
    "AccessDenied": 403,
    "NoSuchEntity": 404,
}


class Call(NamedTuple):
    """A request to the API."""

    service: str
    action: str
    parameters: dict[str, str]

    @property
    def permissions(self) -> set[str]:
        """What IAM must allow for it; tags that come with it need a permission of their own."""
        service = {"monitoring": "cloudwatch"}.get(self.service, self.service)
        tagging = {"ec2": "ec2:CreateTags", "cloudwatch": "cloudwatch:TagResource"}.get(service)
        tagged = any(name.startswith(("TagSpecification", "Tags")) for name in self.parameters)
        created = self.action not in ("CreateTags", "DeleteTags") and tagged and tagging
        if service == "iam" and tagged and self.action.startswith("Create"):
            created = f"iam:Tag{self.action.removeprefix('Create')}"
        action = s3.PERMISSIONS.get(self.action, self.action)
        return {f"{service}:{action}"} | ({created} if created else set())


@dataclass
class Fault:
    """What goes wrong with the next `times` calls of an action.

    Args:
        action: e.g. RunInstances; "*" for any.
        code: EC2's word for it; None: no answer at all, the connection closes.
        times: how often; math.inf for always.
        naming: only calls with such a parameter, e.g. InstanceId: those by id, not by filter;
            trials (DryRun) only if it names that.
        done: the action is carried out all the same.
    """

    action: str
    code: str | None
    times: float = 1
    naming: str = ""
    done: bool = False

    def hits(self, call: Call) -> bool:
        named = any(name.startswith(self.naming) for name in call.parameters)
        if "DryRun" in call.parameters and "DryRun" not in self.naming and self.action != "*":
            return False
        return self.times > 0 and self.action in ("*", call.action) and (named or not self.naming)


def lost_answers(action: str, times: float = math.inf) -> Fault:
    """The action is carried out, but no answer comes back."""
    return Fault(action, None, times, done=True)


class Launched(NamedTuple):
    """An instance, as the hypervisor sees it."""

    id: str
    state: str
    address: str
    private: str
    """Its address among the other instances."""
    user_data: bytes
    public_key: str
    admitted: set[str]
    """Networks that may reach port 22, and instances that may reach any."""
    profile: str | None
    """Its instance profile."""
    ends_when_off: bool
    """InstanceInitiatedShutdownBehavior is terminate."""


class CloudApi:
    """One region of EC2, with SSM, STS, IAM and CloudWatch, from construction until `close`.

    Attributes:
        new_address: gives an instance its public address.
        new_private: gives an instance its private address.
        faults: what is to go wrong; the first that hits a call counts.
        calls: what was asked, in order.
        permitted: IAM actions that the caller may use, as ec2:RunInstances; None: all.
        prices: dollars an hour of instance types, and dollars a month of a GiB of gp3.
        quotas: vCPUs by the code of the quota; 1024 of others.
        account_plan: FREE or PAID.
        changed: set when something may have changed; for a hypervisor that waits.
        environment: by which AWS's libraries find it.
    """

    def __init__(self):
        settings.ENABLE_AMI_VALIDATION = True
        settings.ENABLE_KEYPAIR_VALIDATION = True
        settings.EC2_ENABLE_INSTANCE_TYPE_VALIDATION = True
        # Each reset makes all images anew; nobody asks for the thousand that are ECS's.
        amis.load_resource = lambda path: [] if "/ecs/" in path else load_resource(path)
        elastic_network_interfaces.random_public_ip = lambda: self.new_address()
        instances.random_private_ip = lambda: self.new_private()
        subnets.Subnet.get_available_subnet_ip = lambda subnet, instance: self.new_private()
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=MotoRequestHandler
        )
        self.url = f"http://127.0.0.1:{self._server.port}"
        self._lock = threading.Lock()
        self.changed = threading.Event()
        self.reset()
        self._servers = [self._server]
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def serve(self, address: str) -> str:
        """Answer at this address too, until `close`; returns the URL."""
        server = make_server(
            address, 0, self._answer, threaded=True, request_handler=MotoRequestHandler
        )
        self._servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        return f"http://{address}:{server.port}"

    def reset(self) -> None:
        """As new: no resources, no faults, no calls."""
        Client(self._moto).post("/moto-api/reset")
        self.new_address: Callable[[], str] = lambda: UNUSED_ADDRESS
        numbers = itertools.count(10)
        self.new_private: Callable[[], str] = lambda: f"172.31.0.{next(numbers)}"
        self.faults: list[Fault] = []
        self.calls: list[Call] = []
        self.permitted: set[str] | None = None
        self.prices = dict(PRICES)
        self.quotas: dict[str, float] = {}
        self.account_plan = "PAID"
        self._launches: dict[str, tuple[Call, Response]] = {}
        self._placements: dict[str, dict[str, str]] = {}
        self._placed: dict[str, str] = {}
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "AKIATESTING",
            "AWS_SECRET_ACCESS_KEY": "a-secret-that-no-log-may-show",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def client(self, service: str) -> Any:
        """A boto3 client whose calls meet no fault and are not listed."""
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=_OWN_KEY,
            aws_secret_access_key=_OWN_KEY,
        )

    def resources(self) -> dict[str, int]:
        """What exists and costs or clutters, counted by kind; kinds with nothing are absent."""
        ec2 = self.client("ec2")
        reservations = ec2.describe_instances()["Reservations"]
        instances = [one for group in reservations for one in group["Instances"]]
        groups = ec2.describe_security_groups()["SecurityGroups"]
        found = {
            "instances": [one for one in instances if one["State"]["Name"] not in GONE],
            "key pairs": ec2.describe_key_pairs()["KeyPairs"],
            "security groups": [one for one in groups if one["GroupName"] != "default"],
            "volumes": ec2.describe_volumes()["Volumes"],
            "addresses": ec2.describe_addresses()["Addresses"],
            "placement groups": list(self._placements),
            "alarms": self.client("cloudwatch").describe_alarms()["MetricAlarms"],
            "roles": self.client("iam").list_roles()["Roles"],
            "instance profiles": self.client("iam").list_instance_profiles()["InstanceProfiles"],
        }
        return {kind: len(some) for kind, some in found.items() if some}

    # The other side: what the hypervisor knows and does

    def launched(self) -> list[Launched]:
        """All instances that were ever launched, while EC2 lists them."""
        with self._lock:
            return [_launched(one) for one in _backend().all_instances()]

    def attached(self) -> dict[str, tuple[str, str]]:
        """The instance and the device of each attached disk, by the disk's id."""
        with self._lock:
            found = _backend().volumes.items()
            return {
                name: (disk.attachment.instance.id, disk.attachment.device)
                for name, disk in found
                if disk.attachment
            }

    def end(self, instance_id: str, code: str, stop: bool = False) -> None:
        """Terminate (or stop) an instance for a reason that EC2 words as this code."""
        backend = _backend()
        with self._lock:
            (instance,) = backend.get_multi_instances_by_id([instance_id])
            if instance.state not in GONE:
                (backend.stop_instances if stop else backend.terminate_instances)([instance_id])
                instance.state_reason = StateReason(code, code)
        self.changed.set()

    # Requests

    def _answer(self, environ: dict, start_response: Callable) -> Any:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        call, key = _parsed(environ, body)
        answer = Response()
        with self._lock:  # moto itself has none
            if key == _OWN_KEY:
                return self._moto_answer(environ)(environ, start_response)
            self.calls.append(call)
            fault = next((one for one in self.faults if one.hits(call)), None)
            if fault:
                fault.times -= 1
            if not fault or fault.done:
                answer = self._carried_out(call, environ)
                self.changed.set()
        if fault and fault.code:
            answer = _refusal(call, fault.code, "as the test wants it")
        elif fault:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return answer(environ, start_response)

    def _carried_out(self, call: Call, environ: dict) -> Response:
        if self.permitted is not None and call.permissions - self.permitted - _ALWAYS_PERMITTED:
            code = "UnauthorizedOperation" if call.service == "ec2" else "AccessDenied"
            return _refusal(call, code, f"no permission for {sorted(call.permissions)}")
        if call.service == "s3" and s3.is_damaged(environ, environ["wsgi.input"].getvalue()):
            return _refusal(call, "BadDigest", "the checksum is not that of the content")
        if call.action == "RunInstances":
            return self._launch(call, environ)
        if call.action == "DeleteSecurityGroup" and _in_use(call.parameters.get("GroupId")):
            return _refusal(call, "DependencyViolation", "the group has a dependent object")
        if call.action.endswith(("PlacementGroup", "PlacementGroups")):
            return self._placement(call)
        if call.action == "GetProducts":
            return self._products(call)
        if call.action == "GetServiceQuota":
            code = call.parameters["QuotaCode"]
            quota = {"QuotaCode": code, "QuotaName": "vCPUs", "Value": self.quotas.get(code, 1024)}
            return _json({"Quota": quota})
        if call.action == "GetAccountPlanState":
            return _json({"accountPlanType": self.account_plan})
        try:
            answer = self._moto_answer(environ)
        except ValueError:
            if call.action != "RemoveRoleFromInstanceProfile":
                raise
            return _refusal(call, "NoSuchEntity", "the role is not in the profile")
        if b"InvalidNetworkInterfaceID" in answer.get_data():  # of what has ended before
            return _answer(call, "<instancesSet/>")
        return answer

    def _launch(self, call: Call, environ: dict) -> Response:
        """Start instances; the same token, whose call is the same, gives the same answer."""
        if len(base64.b64decode(call.parameters.get("UserData", ""))) > USER_DATA_LIMIT:
            return _refusal(call, "InvalidParameterValue", "User data is limited to 16384 bytes")
        token = call.parameters.get("ClientToken")
        if token in self._launches:
            first, answer = self._launches[token]
            if first == call:
                return answer
            return _refusal(call, "IdempotentParameterMismatch", "the token was used otherwise")
        group = call.parameters.get("Placement.GroupName")
        if group not in (None, *self._placements):
            return _refusal(call, "InvalidPlacementGroup.Unknown", f"no group {group}")
        answer = self._moto_answer(environ)
        if token and answer.status_code == 200:
            self._launches[token] = call, answer
        if group and answer.status_code == 200:
            made = re.findall(
                "<instanceId>(i-[0-9a-f]+)</instanceId>", answer.get_data(as_text=True)
            )
            self._placed |= dict.fromkeys(made, group)
        return answer

    def _products(self, call: Call) -> Response:
        """Price List, which moto does not have: a product on demand, of us-east-1 alone."""
        asked = {one["Field"]: one["Value"] for one in json.loads(call.parameters["Filters"])}
        price = self.prices.get(asked.get("instanceType", asked.get("volumeApiName")))
        there = price is not None and asked["regionCode"] == REGION
        dimension = {"pricePerUnit": {"USD": f"{price:.10f}"}} if there else {}
        product = {"terms": {"OnDemand": {"1": {"priceDimensions": {"1": dimension}}}}}
        return _json({"PriceList": [json.dumps(product)] if there else []})

    def _placement(self, call: Call) -> Response:
        """Placement groups, which moto does not have; a filter is by name or by one tag."""
        name = call.parameters.get("GroupName", "")
        if call.action == "CreatePlacementGroup":
            if name in self._placements:
                return _refusal(call, "InvalidPlacementGroup.Duplicate", "there is one")
            self._placements[name] = _tags(call)
        elif call.action == "DeletePlacementGroup":
            living = {one.id for one in _backend().all_instances() if one.state not in GONE}
            if name not in self._placements:
                return _refusal(call, "InvalidPlacementGroup.Unknown", f"no group {name}")
            if name in [self._placed.get(one) for one in living]:
                return _refusal(call, "InvalidPlacementGroup.InUse", "instances are in it")
            del self._placements[name]
        else:
            by = call.parameters["Filter.1.Name"].removeprefix("tag:")
            value = call.parameters["Filter.1.Value.1"]
            found = []
            for name, tags in self._placements.items():
                if value == {"group-name": name, **tags}.get(by):
                    items = (
                        f"<item><key>{k}</key><value>{v}</value></item>" for k, v in tags.items()
                    )
                    tag_set = f"<tagSet>{''.join(items)}</tagSet>"
                    found.append(f"<item><groupName>{name}</groupName>{tag_set}</item>")
            return _answer(call, f"<placementGroupSet>{''.join(found)}</placementGroupSet>")
        return _answer(call, "<return>true</return>")

    def _moto_answer(self, environ: dict) -> Response:
        body, status, headers = run_wsgi_app(self._moto, environ, buffered=True)
        return Response(b"".join(body), status, headers)


def _parsed(environ: dict, body: bytes) -> tuple[Call, str]:
    """The call of a request, and the access key that signed it."""
    credential = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].split(",")[0]
    key, _, _, service, _ = credential.split("/") if credential else [""] * 5
    if service == "s3":
        return Call(service, *s3.parsed(environ)), key
    target = environ.get("HTTP_X_AMZ_TARGET")
    if target:
        values = json.loads(body).items()
        return Call(service, target.rpartition(".")[2], {k: _text(v) for k, v in values}), key
    parameters = dict(parse_qsl(body.decode()))
    return Call(service, parameters.pop("Action", ""), parameters), key


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _json(answer: dict) -> Response:
    return Response(json.dumps(answer), 200, content_type="application/x-amz-json-1.1")


def _tags(call: Call) -> dict[str, str]:
    """The tags that are to be made with a resource, of the first kind that is named."""
    begin, given = "TagSpecification.1.Tag.", call.parameters
    keys = [name for name in given if name.startswith(begin) and name.endswith(".Key")]
    return {given[name]: given[name.removesuffix("Key") + "Value"] for name in keys}


def _answer(call: Call, content: str) -> Response:
    name = f"{call.action}Response"
    text = f"<{name}><requestId>1</requestId>{content}</{name}>"
    return Response(text, 200, content_type="text/xml")


def _refusal(call: Call, code: str, message: str) -> Response:
    """An error in the form that the service gives it."""
    status = _STATUS.get(code, 400)
    if call.service in _JSON:
        text = json.dumps({"__type": code, "message": message})
        return Response(text, status, content_type="application/x-amz-json-1.1")
    error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    if call.service == "ec2":
        text = f"<Response><Errors>{error}</Errors><RequestID>1</RequestID></Response>"
    elif call.service == "s3":
        text = error
    else:
        text = f"<ErrorResponse>{error}<RequestId>1</RequestId></ErrorResponse>"
    return Response(text, status, content_type="text/xml")


def _backend() -> Any:
    return backends.get_backend("ec2")[DEFAULT_ACCOUNT_ID][REGION]


def _launched(instance: Any) -> Launched:
    pair = _backend().key_pairs.get(instance.key_name)
    return Launched(
        id=instance.id,
        state=instance.state,
        address=instance.public_ip,
        private=instance.private_ip,
        user_data=base64.b64decode(str(instance.user_data or "")),
        public_key=pair.material_public.decode().strip() if pair else "",
        admitted=_admitted(_groups(instance)),
        profile=instance.iam_instance_profile,
        ends_when_off=instance.instance_initiated_shutdown_behavior == "terminate",
    )


def _admitted(groups: list) -> set[str]:
    rules = [rule for group in groups for rule in group.ingress_rules]
    members = {
        f"{instance.private_ip}/32"
        for instance in _backend().all_instances()
        if instance.state not in GONE
        for group in _groups(instance)
        if any((rule.source_group or {}).get("GroupId") == group.id for rule in rules)
    }
    return members | {
        rule.ip_range["CidrIp"]
        for rule in rules
        if "CidrIp" in rule.ip_range
        and (rule.ip_protocol == "-1" or rule.from_port <= 22 <= rule.to_port)
    }


def _groups(instance: Any) -> list:
    """Also those of an interface that was asked for with the instance."""
    return [*instance.security_groups, *instance.nics[0].group_set]


def _in_use(group_id: str | None) -> bool:
    return any(
        group.id == group_id
        for instance in _backend().all_instances()
        if instance.state not in GONE
        for group in _groups(instance)
    )
