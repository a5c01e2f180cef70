"""The Kubernetes manifests, as far as they can be held without a cluster."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.deployment.conftest import ROOT, check_command, check_settings

FOLDER = ROOT / "deploy" / "kubernetes"

# The oldest release that is still supported.
KUBERNETES = "1.32"
# Custom resources, of which the validator knows no schema.
CUSTOM = {"keda.sh", "monitoring.coreos.com"}


def kustomized(folder: str = ".") -> list[dict[str, Any]]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        [kubectl, "kustomize", str(FOLDER / folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def written() -> Iterator[dict[str, Any]]:
    """Yield the objects as they are written, kustomize's own left out."""
    for path in sorted(FOLDER.rglob("*.yaml")):
        if path.name != "kustomization.yaml":
            yield from yaml.safe_load_all(path.read_text())


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [item for item in written() if item["kind"] == kind]


@pytest.fixture(scope="module")
def deployments() -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item["spec"] for item in of_kind("Deployment")}


def containers(deployment: dict[str, Any]) -> list[dict[str, Any]]:
    pod = deployment["template"]["spec"]
    return [*pod["initContainers"], *pod["containers"]]


def is_valid(item: dict[str, Any]) -> bool:
    validator = pytest.importorskip("kubernetes_validate")
    if item["apiVersion"].split("/")[0] in CUSTOM:
        return True
    try:
        validator.validate(item, KUBERNETES, strict=True)
    except validator.ValidationError as error:
        pytest.fail(f"{item['kind']} {item['metadata']['name']}: {error.message}")
    return True


def test_each_manifest_is_valid() -> None:
    assert all(is_valid(item) for item in written())


def test_what_kustomize_makes_of_them_is_valid() -> None:
    items = kustomized()

    assert all(is_valid(item) for item in items)
    assert {item["metadata"].get("namespace") for item in items} == {"clip-backend", None}


def test_the_validator_refuses_a_field_that_does_not_exist() -> None:
    broken = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "specs": {}}

    with pytest.raises(pytest.fail.Exception):
        is_valid(broken)


def test_pods_run_commands_that_exist(deployments: dict[str, Any]) -> None:
    for deployment in deployments.values():
        for container in containers(deployment):
            assert "command" not in container
            check_command(container["args"])


def test_settings_and_secrets_are_settings() -> None:
    (secret,) = of_kind("Secret")
    settings = re.findall(r"^(\w+)=", (FOLDER / "base/settings.env").read_text(), re.MULTILINE)

    check_settings(sorted(secret["stringData"]))
    check_settings(settings)
    assert not {name.lower() for name in settings} & secret["stringData"].keys()


def test_label_studio_is_given_a_name_with_dots_that_is_the_service_s() -> None:
    settings = (FOLDER / "base/settings.env").read_text()
    (url,) = re.findall(r"^BACKEND_URL=(.*)$", settings, re.MULTILINE)
    (service,) = of_kind("Service")
    (namespace,) = of_kind("Namespace")
    name, space = service["metadata"]["name"], namespace["metadata"]["name"]

    assert urlsplit(url).hostname == f"{name}.{space}.svc"
    assert urlsplit(url).port == service["spec"]["ports"][0]["port"]


def test_every_container_is_locked_down(deployments: dict[str, Any]) -> None:
    for deployment in deployments.values():
        pod = deployment["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod["automountServiceAccountToken"]
        for container in containers(deployment):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert mounts == {"/data", "/run/secrets", "/tmp"}


def test_the_api_has_every_probe_at_a_path_without_a_password(deployments: dict[str, Any]) -> None:
    (api,) = deployments["api"]["template"]["spec"]["containers"]

    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert api[probe]["httpGet"] == {"path": "/health", "port": "http"}


def test_workers_are_scaled_by_a_metric_that_exists(deployments: dict[str, Any]) -> None:
    (scaled,) = of_kind("ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    metrics = (ROOT / "backend/api/monitoring.py").read_text()

    assert scaled["spec"]["scaleTargetRef"]["name"] in deployments
    for metric in re.findall(r"clip_backend_\w+", trigger["metadata"]["query"]):
        assert f'"{metric}"' in metrics
    by_kustomize = {
        item["metadata"]["name"]: item["spec"]
        for item in kustomized()
        if item["kind"] == "Deployment"
    }
    assert "replicas" not in by_kustomize["worker"]


def test_the_selectors_find_the_pods(deployments: dict[str, Any]) -> None:
    (service,) = of_kind("Service")
    labels = deployments["api"]["template"]["metadata"]["labels"]

    assert service["spec"]["selector"].items() <= labels.items()
