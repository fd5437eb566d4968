"""The Kubernetes objects fit each other, hold no privilege, and are what the API knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployment import DOCKER, manifests

FOLDER = DOCKER / "k8s"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
OBJECTS = [body for name, body in manifests(FOLDER) if name != "kustomization.yaml"]


def of(kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in OBJECTS if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


PODS = {name: of("Job", name)["spec"]["template"] for name in ("ullage-master", "ullage-workers")}
LOOK: dict[str, Any] = yaml.safe_load((FOLDER / "look/pod.yaml").read_text())


def containers() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, pod in {**PODS, "look": LOOK}.items():
        for one in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
            yield f"{name}/{one['name']}", one


EACH = pytest.mark.parametrize(
    "container", [one for _, one in containers()], ids=[name for name, _ in containers()]
)


def selects(selector: dict[str, Any], pod: dict[str, Any]) -> bool:
    labels = selector.get("matchLabels", selector)
    return labels.items() <= pod["metadata"]["labels"].items()


def test_every_file_is_a_resource_once() -> None:
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert sorted(KUSTOMIZATION["resources"]) == sorted(files)


def test_every_image_is_the_one_that_is_pinned() -> None:
    (image,) = KUSTOMIZATION["images"]
    assert image["newTag"] != "latest"
    assert {one["image"] for name, one in containers() if name != "look/look"} == {image["name"]}
    assert LOOK["spec"]["containers"][0]["image"] == f"{image['newName']}:{image['newTag']}"


@EACH
def test_a_container_can_write_only_where_it_must(container: dict[str, Any]) -> None:
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert {one["mountPath"] for one in container.get("volumeMounts", [])} <= {"/work/runs", "/tmp"}


@EACH
def test_a_container_has_whole_processors_of_its_own(container: dict[str, Any]) -> None:
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    assert int(resources["limits"]["cpu"]) >= 1


@pytest.mark.parametrize("pod", [*PODS.values(), LOOK], ids=[*PODS, "look"])
def test_a_pod_is_not_root_and_knows_nothing_of_the_cluster(pod: dict[str, Any]) -> None:
    spec = pod["spec"]
    context = spec["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == context["fsGroup"] == 10001
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert not any("hostPath" in volume for volume in spec["volumes"])


@pytest.mark.parametrize("name", PODS)
def test_a_load_that_broke_is_not_begun_again(name: str) -> None:
    assert of("Job", name)["spec"]["backoffLimit"] == 0
    assert PODS[name]["spec"]["restartPolicy"] == "Never"


def test_the_run_folder_is_the_masters_and_workers_may_be_on_any_node() -> None:
    mounted = {
        (name, volume["persistentVolumeClaim"]["claimName"], mount["mountPath"])
        for name, pod in PODS.items()
        for mount in pod["spec"]["containers"][0]["volumeMounts"]
        for volume in pod["spec"]["volumes"]
        if mount["name"] == volume["name"] and "persistentVolumeClaim" in volume
    }
    assert mounted == {("ullage-master", "ullage-runs", "/work/runs")}
    assert of("PersistentVolumeClaim", "ullage-runs")
    workers = PODS["ullage-workers"]["spec"]
    assert not {"affinity", "nodeName", "nodeSelector"} & workers.keys()
    (kept,) = workers["volumes"]
    assert "emptyDir" in kept, "rows wait there for the master"
    assert {"name": kept["name"], "mountPath": "/tmp"} in workers["containers"][0]["volumeMounts"]


def test_the_master_waits_for_as_many_workers_as_there_will_be() -> None:
    workers = of("Job", "ullage-workers")["spec"]
    expected = of("ConfigMap", "ullage-settings")["data"]["LOCUST_EXPECT_WORKERS"]
    assert workers["parallelism"] == workers["completions"] == int(expected)


def test_workers_find_the_master_by_the_name_of_its_service() -> None:
    service = of("Service", "ullage-master")["spec"]
    assert selects(service["selector"], PODS["ullage-master"])
    assert not selects(service["selector"], PODS["ullage-workers"])
    (worker,) = PODS["ullage-workers"]["spec"]["containers"]
    assert "--master-host=ullage-master" in worker["args"]
    (master,) = PODS["ullage-master"]["spec"]["containers"]
    (port,) = service["ports"]
    assert {(port["targetPort"], port["port"])} == {
        (one["name"], one["containerPort"]) for one in master["ports"]
    }


def test_nobody_but_workers_reaches_the_port_that_has_no_password() -> None:
    policies = [one["spec"] for one in OBJECTS if one["kind"] == "NetworkPolicy"]
    everyone = [one for one in policies if all(selects(one["podSelector"], pod) for pod in PODS.values())]
    assert [one["policyTypes"] for one in everyone] == [["Ingress", "Egress"]]
    rules = [rule for one in policies for rule in one.get("ingress", [])]
    (rule,) = rules
    (source,) = rule["from"]
    assert selects(source["podSelector"], PODS["ullage-workers"])
    assert not selects(source["podSelector"], PODS["ullage-master"])
    assert rule["ports"] == [{"port": 5557}]


def test_the_api_key_comes_from_a_secret_and_stands_nowhere() -> None:
    for name, container in containers():
        if name.endswith(("/master", "/worker")):
            (key,) = container["env"]
            assert key["name"] == "ULLAGE_API_KEY"
            assert key["valueFrom"]["secretKeyRef"]["optional"] is True
            assert "value" not in key
    assert not [one for one in OBJECTS if one["kind"] == "Secret"]
    assert not any("KEY" in name for name in of("ConfigMap", "ullage-settings")["data"])


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.yaml")), ids=lambda path: path.name)
def test_the_api_knows_every_field(path: Path) -> None:
    """Against the schemas of Kubernetes itself, which do not hold kustomize or the Prometheus operator."""
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    for body in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        if body["apiVersion"] not in ("kustomize.config.k8s.io/v1beta1", "monitoring.coreos.com/v1"):
            validate.validate(body, validate.latest_version(), strict=True)
