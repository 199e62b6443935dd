"""``deploy/kubernetes/``, held against the program and the schemas of Kubernetes."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from ipaddress import ip_network
from typing import Any

import kubernetes_validate
import pytest
import yaml

from proxy.config import Config, load_config
from proxy.egress.addresses import forbidden
from proxy.egress.endpoint import parse_origin
from proxy.tools.doctor.memory_ceiling import ceiling
from proxy.web.app import create_app
from tests.deploy.test_deploy import dockerfile_environment
from tests.processes import ROOT

pytestmark = pytest.mark.slow

Object = dict[str, Any]


@cache
def manifests() -> dict[str, Object]:
    """By kind: there is one of each."""
    text = (ROOT / "deploy/kubernetes/imageproxy.yaml").read_text()
    found = list(yaml.safe_load_all(text))
    assert len({each["kind"] for each in found}) == len(found)
    return {each["kind"]: each for each in found}


def pod() -> Object:
    spec: Object = manifests()["Deployment"]["spec"]["template"]["spec"]
    return spec


def test_each_manifest_is_one_by_the_schemas_of_kubernetes() -> None:
    """Catches a field in the wrong place, which some versions drop without a word."""
    for each in manifests().values():
        kubernetes_validate.validate(each, "1.37", strict=True)
    broken = deepcopy(manifests()["Deployment"])
    broken["spec"]["template"]["spec"]["securityContext"]["readOnlyRootFilesystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="readOnlyRootFilesystem"):
        kubernetes_validate.validate(broken, "1.37", strict=True)


def test_the_settings_are_keys_that_exist_and_fit_the_volume_and_the_memory() -> None:
    """Catches a misspelt key, a cache that is larger than its disk, and a pod that is killed."""
    config = load_config(environment=manifests()["ConfigMap"]["data"])
    claim = manifests()["PersistentVolumeClaim"]["spec"]["resources"]["requests"]["storage"]
    assert config.cache.max_gb < int(claim.removesuffix("Gi"))
    (container,) = pod()["containers"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert mounts["cache"] == dockerfile_environment()["IMAGE_PROXY_CACHE__PATH"]
    memory = int(container["resources"]["limits"]["memory"].removesuffix("Gi"))
    assert memory << 30 > ceiling(Config(), 2)


def test_what_refers_to_another_manifest_finds_it() -> None:
    """Catches a name or a label that was changed in one place."""
    named = manifests()
    labels = named["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert named["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert named["Service"]["spec"]["selector"] == labels
    assert named["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    (container,) = pod()["containers"]
    assert container["envFrom"][0]["configMapRef"]["name"] == named["ConfigMap"]["metadata"]["name"]
    volumes = {each["name"]: each for each in pod()["volumes"]}
    claim = volumes["cache"]["persistentVolumeClaim"]["claimName"]
    assert claim == named["PersistentVolumeClaim"]["metadata"]["name"]
    namespace = named["Namespace"]["metadata"]["name"]
    inside = [each for kind, each in named.items() if kind != "Namespace"]
    assert {each["metadata"]["namespace"] for each in inside} == {namespace}
    (port,) = container["ports"]
    asked = {container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness")}
    asked.add(container["readinessProbe"]["httpGet"]["path"])
    assert asked == {"/healthz", "/readyz"}
    assert asked <= {rule.rule for rule in create_app(Config()).url_map.iter_rules()}
    assert {each["targetPort"] for each in named["Service"]["spec"]["ports"]} == {port["name"]}


def test_the_pod_has_no_privileges_and_no_root_that_can_be_written() -> None:
    (container,) = pod()["containers"]
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod()["automountServiceAccountToken"] is False
    own = container["securityContext"]
    assert own["allowPrivilegeEscalation"] is False
    assert own["readOnlyRootFilesystem"] is True
    assert own["capabilities"] == {"drop": ["ALL"]}


def test_the_network_policy_opens_what_the_guard_opens_and_no_private_network() -> None:
    """Catches a hole that the guard does not have, and a port that it has and the policy lacks."""
    _, public = manifests()["NetworkPolicy"]["spec"]["egress"]
    blocks = [each["ipBlock"] for each in public["to"]]
    for network in (each for block in blocks for each in block.get("except", ())):
        assert forbidden(ip_network(network)[1])
    for private in ("10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"):
        assert private in blocks[0]["except"]
    assert blocks[1] == {"cidr": "2000::/3"}
    assert public["ports"] == [{"port": 443}, {"port": 1024, "endPort": 65535}]
    for port in (443, 1024, 65535):
        parse_origin(f"https://pds.example:{port}", allow_http=False)
