"""What is in ``deploy/cluster/``, held against the program and against what reads it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from proxy.config import ENV_PREFIX, Config, load_config
from proxy.tools.doctor.memory_ceiling import ceiling
from proxy.web.app import create_app
from tests.balancers import haproxy_program
from tests.deploy.test_deploy import dockerfile_environment, need
from tests.processes import ROOT

pytestmark = pytest.mark.slow

CLUSTER = ROOT / "deploy/cluster"

Object = dict[str, Any]


def compose() -> Object:
    document: Object = yaml.safe_load((CLUSTER / "compose.yaml").read_text())
    return document


@cache
def manifests() -> tuple[Object, ...]:
    files = ("kubernetes.yaml", "kubernetes-balancer.yaml")
    return tuple(
        each for file in files for each in yaml.safe_load_all((CLUSTER / file).read_text())
    )


def named(kind: str, name: str) -> Object:
    (found,) = (
        each for each in manifests() if (each["kind"], each["metadata"]["name"]) == (kind, name)
    )
    return found


def of_kind(*kinds: str) -> Iterator[Object]:
    return (each for each in manifests() if each["kind"] in kinds)


def labels_of(workload: Object) -> Mapping[str, str]:
    labels: Mapping[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


def containers() -> Iterator[tuple[Object, Object]]:
    """Each workload's pod and its container."""
    for workload in of_kind("Deployment", "StatefulSet"):
        pod = workload["spec"]["template"]["spec"]
        for container in pod["containers"]:
            yield pod, container


def check_settings(variables: Mapping[str, str]) -> None:
    """Have the program take them, as values where the file has placeholders of the shell."""
    set_here = {
        name: re.sub(r"\$\{\w+:-\}", "", re.sub(r"\$\{\w+:\?\}", "secret", value))
        for name, value in variables.items()
    }
    load_config(environment=set_here)


# Compose


def test_compose_itself_reads_the_file_of_a_cluster() -> None:
    command = [need("docker-compose"), "-f", str(CLUSTER / "compose.yaml"), "config", "--quiet"]
    secrets = {"POSTGRES_PASSWORD": "a", "STORE_SECRET": "b"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=secrets)
    assert done.returncode == 0, done.stderr
    without = subprocess.run(command, capture_output=True, text=True, check=False, env={})
    assert without.returncode != 0, "a database without a password must not start"


def test_the_nodes_of_the_compose_file_are_set_by_keys_that_exist() -> None:
    """Catches a misspelt key, which stops both nodes, and nodes that share no decisions."""
    nodes = {name: each for name, each in compose()["services"].items() if "build" in each}
    assert len(nodes) >= 2
    folders = set()
    for each in nodes.values():
        check_settings(each["environment"])
        (volume,) = each["volumes"]
        folder, mounted = volume.split(":")
        assert mounted == dockerfile_environment()["IMAGE_PROXY_CACHE__PATH"]
        folders.add(folder)
        built_from = CLUSTER / each["build"]["context"] / each["build"]["dockerfile"]
        assert built_from.resolve() == ROOT / "deploy/Dockerfile"
        assert int(each["mem_limit"].removesuffix("g")) << 30 > ceiling(Config(), 2)
        assert "ports" not in each, "the balancer alone is reached from outside"
    assert len(folders) == len(nodes)
    assert folders < set(compose()["volumes"])


def test_what_the_parts_of_the_compose_file_call_each_other_is_there() -> None:
    """Catches a password that only one side has, and a name that nothing answers to."""
    services = compose()["services"]
    node = services["node1"]["environment"]
    database = re.fullmatch(
        r"postgresql://(\w+):(\$\{\w+:\?\})@(\w+)/(\w+)", node["IMAGE_PROXY_CLUSTER__DATABASE"]
    )
    assert database is not None
    user, password, host, name = database.groups()
    postgres = services[host]["environment"]
    assert (postgres["POSTGRES_USER"], postgres["POSTGRES_PASSWORD"]) == (user, password)
    assert postgres["POSTGRES_DB"] == name
    store = re.fullmatch(r"http://(\w+):8333", node["IMAGE_PROXY_STORE__ENDPOINT"])
    assert store is not None
    identity = services[store[1]]["environment"]
    assert identity["AWS_ACCESS_KEY_ID"] == node["IMAGE_PROXY_STORE__ACCESS_KEY_ID"]
    assert identity["AWS_SECRET_ACCESS_KEY"] == node["IMAGE_PROXY_STORE__SECRET_ACCESS_KEY"]
    for inner in (host, store[1]):
        assert services[inner]["networks"] == ["inside"]
    assert compose()["networks"]["inside"] == {"internal": True}


def balancer_of(file: str) -> str:
    if file == "haproxy.cfg":
        return (CLUSTER / file).read_text()
    text: str = named("ConfigMap", "balancer")["data"]["haproxy.cfg"]
    return text


def servers_of(text: str) -> set[str]:
    return set(re.findall(r"(?m)^ +server \S+ (\S+) id", text))


def test_the_balancer_of_the_compose_file_knows_its_nodes() -> None:
    services = compose()["services"]
    nodes = {name for name, each in services.items() if "build" in each}
    port = dockerfile_environment()["IMAGE_PROXY_SERVER__BIND"].rpartition(":")[2]
    assert servers_of(balancer_of("haproxy.cfg")) == {f"{name}:{port}" for name in nodes}
    (published,) = services["balancer"]["ports"]
    assert f"bind :{published.rpartition(':')[2]}\n" in balancer_of("haproxy.cfg")
    assert published.startswith("127.0.0.1:")


@pytest.mark.parametrize("file", ["haproxy.cfg", "kubernetes-balancer.yaml"])
def test_haproxy_takes_the_balancer(file: str, tmp_path: Path) -> None:
    # Nobody resolves the names here.
    text = re.sub(r"(server \S+) \S+:", r"\1 127.0.0.1:", balancer_of(file))
    written = tmp_path / "haproxy.cfg"
    written.write_text(text)
    command = [haproxy_program(), "-c", "-f", str(written)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr


# Kubernetes


def test_each_manifest_is_one_by_the_schemas_of_kubernetes() -> None:
    """Catches a field in the wrong place, which some versions drop without a word."""
    for each in manifests():
        kubernetes_validate.validate(each, "1.37", strict=True)
    broken = deepcopy(named("StatefulSet", "node"))
    broken["spec"]["template"]["spec"]["terminationGracePeriod"] = 40
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(broken, "1.37", strict=True)


def test_everything_is_in_one_namespace() -> None:
    (namespace,) = of_kind("Namespace")
    inside = [each for each in manifests() if each is not namespace]
    assert {each["metadata"]["namespace"] for each in inside} == {namespace["metadata"]["name"]}


def test_the_pods_are_set_by_keys_that_exist() -> None:
    """Catches a misspelt key, and a setting that no container is given."""
    given = [
        *(each["data"] for each in of_kind("ConfigMap") if "haproxy.cfg" not in each["data"]),
        *(each["stringData"] for each in of_kind("Secret")),
    ]
    settings = {name: value for each in given for name, value in each.items()}
    assert all(name.startswith(ENV_PREFIX) for name in settings)
    check_settings(settings)
    sources = [source for _, container in containers() for source in container.get("envFrom", ())]
    for source in sources:
        for reference, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if reference in source:
                named(kind, source[reference]["name"])
    assert len(sources) == len(given)


def test_the_cache_of_a_pod_is_where_the_image_has_it_and_fits_its_volume() -> None:
    workload = named("StatefulSet", "node")
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert mounts["cache"] == dockerfile_environment()["IMAGE_PROXY_CACHE__PATH"]
    (claim,) = workload["spec"]["volumeClaimTemplates"]
    size = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi"))
    settings = named("ConfigMap", "imageproxy")["data"]
    assert float(settings["IMAGE_PROXY_CACHE__MAX_GB"]) < size
    memory = int(container["resources"]["limits"]["memory"].removesuffix("Gi"))
    assert memory << 30 > ceiling(Config(), 2)


def test_every_probe_asks_a_route_that_exists_on_a_port_that_is_named() -> None:
    routes = {rule.rule for rule in create_app(Config()).url_map.iter_rules()}
    asked = set()
    for _, container in containers():
        ports = {port["name"] for port in container["ports"]}
        for name, probe in container.items():
            if name.endswith("Probe"):
                (action,) = (probe[key] for key in ("httpGet", "tcpSocket") if key in probe)
                assert action["port"] in ports
                asked |= {action["path"]} if "path" in action else set()
    assert asked == {"/healthz", "/readyz"}
    assert asked <= routes


def test_every_selector_selects_pods_and_every_port_is_theirs() -> None:
    """Catches a label that was renamed in one place: a policy for nothing protects nothing."""
    pods = [labels_of(each) for each in of_kind("Deployment", "StatefulSet")]
    selectors = [
        *(each["spec"]["selector"] for each in of_kind("Service")),
        *(each["spec"]["selector"]["matchLabels"] for each in of_kind("PodDisruptionBudget")),
        *(each["spec"]["podSelector"]["matchLabels"] for each in of_kind("NetworkPolicy")),
    ]
    for selector in selectors:
        assert sum(selects(selector, labels) for labels in pods) == 1
    for labels in pods:
        for kind in ("PodDisruptionBudget", "NetworkPolicy"):
            spec = [each["spec"] for each in of_kind(kind)]
            chosen = [each.get("podSelector") or each["selector"] for each in spec]
            assert sum(selects(each["matchLabels"], labels) for each in chosen) == 1
    for service in of_kind("Service"):
        for workload in of_kind("Deployment", "StatefulSet"):
            if selects(service["spec"]["selector"], labels_of(workload)):
                (container,) = workload["spec"]["template"]["spec"]["containers"]
                names = {port["name"] for port in container["ports"]}
                assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


def test_the_balancer_knows_each_pod_by_its_name_and_is_let_to_it() -> None:
    workload = named("StatefulSet", "node")
    service = named("Service", workload["spec"]["serviceName"])
    (port,) = (each["port"] for each in service["spec"]["ports"])
    domain = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.cluster.local"
    pods = [f"{workload['metadata']['name']}-{n}" for n in range(workload["spec"]["replicas"])]
    assert servers_of(balancer_of("")) == {f"{pod}.{domain}:{port}" for pod in pods}
    assert service["spec"]["clusterIP"] == "None"
    (container,) = named("Deployment", "balancer")["spec"]["template"]["spec"]["containers"]
    assert f"bind :{container['ports'][0]['containerPort']}\n" in balancer_of("")
    policy = named("NetworkPolicy", "node")["spec"]["ingress"]
    let_in = [source["podSelector"]["matchLabels"] for each in policy for source in each["from"]]
    assert any(selects(each, labels_of(named("Deployment", "balancer"))) for each in let_in)
    assert all("ipBlock" not in source for each in policy for source in each["from"])


def test_no_pod_has_privileges_or_a_root_that_can_be_written() -> None:
    for pod, container in containers():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
