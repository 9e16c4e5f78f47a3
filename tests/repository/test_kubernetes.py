"""The manifests for Kubernetes: valid, and in accordance with the server and the image."""

from __future__ import annotations

import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from server.config import Settings

from ..support.harness import ROOT

MANIFESTS: list[dict[str, Any]] = list(
    yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text("utf-8"))
)
VERSIONS = ("1.28", "1.37")
"""The oldest and the newest version of Kubernetes."""


def manifest(kind: str) -> dict[str, Any]:
    (found,) = (one for one in MANIFESTS if one["kind"] == kind)
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_have_the_fields_of_kubernetes(version: str) -> None:
    kinds = {one["kind"] for one in MANIFESTS}
    assert kinds >= {"StatefulSet", "Service", "PodDisruptionBudget", "PersistentVolumeClaim"}
    for one in MANIFESTS:
        kubernetes_validate.validate(one, version, strict=True)


def test_node_is_named_drained_and_probed_as_the_server_expects() -> None:
    pod = manifest("StatefulSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    config = manifest("ConfigMap")["data"]
    names = {f"CLAWDFORGE_{name.upper()}" for name in Settings.__dataclass_fields__}
    assert {*config, *(one["name"] for one in container["env"])} <= names
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = int(config["CLAWDFORGE_DRAIN_SECS"])
    assert pod["terminationGracePeriodSeconds"] > drain + pause + 30
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    mounted = {one["mountPath"] for one in container["volumeMounts"]}
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    port, user = re.search(r"EXPOSE (\d+)", dockerfile), re.search(r"USER (\d+)", dockerfile)
    assert port is not None
    assert user is not None
    assert container["ports"][0]["containerPort"] == int(port[1])
    assert pod["securityContext"]["runAsUser"] == int(user[1])
    assert {"/data", config["CLAWDFORGE_SHARED_DIR"], "/home/clawdforge/.claude"} <= mounted


def test_parts_of_the_manifest_refer_to_each_other() -> None:
    stateful = manifest("StatefulSet")["spec"]
    labels = stateful["template"]["metadata"]["labels"]
    services = {one["metadata"]["name"]: one for one in MANIFESTS if one["kind"] == "Service"}
    assert services[stateful["serviceName"]]["spec"]["clusterIP"] == "None"
    for service in services.values():
        assert service["spec"]["selector"].items() <= labels.items()
    assert manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    (rule,) = manifest("Ingress")["spec"]["rules"]
    assert rule["http"]["paths"][0]["backend"]["service"]["name"] in services
    claims = [one.get("persistentVolumeClaim") for one in stateful["template"]["spec"]["volumes"]]
    assert {"claimName": manifest("PersistentVolumeClaim")["metadata"]["name"]} in claims
