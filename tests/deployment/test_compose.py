"""The compose files, as far as they can be held without an engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from backend.settings import Settings
from tests.deployment.conftest import (
    BASE,
    GPU,
    ROOT,
    check_command,
    check_settings,
    read_compose,
)

COMBINATIONS = list(product((BASE, GPU), ((), ("monitoring",))))
MAKE_SECRETS = ROOT / "deploy" / "compose" / "make_secrets.py"

# Hugging Face's, and not one of ours.
FOREIGN = {"HF_HUB_OFFLINE"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = read_compose(profiles=["monitoring"])["services"]
    return found


def ours(services: dict[str, Any]) -> dict[str, Any]:
    """Return the services that run `clip-backend`."""
    return {
        name: service
        for name, service in services.items()
        if "build" in service and service.get("entrypoint") is None
    }


@pytest.mark.parametrize(("files", "profiles"), COMBINATIONS)
def test_every_combination_of_files_and_profiles_resolves(
    files: tuple[str, ...], profiles: tuple[str, ...]
) -> None:
    services = read_compose(files, profiles)["services"]

    expected = {"label-studio", "postgres", "redis", "api", "worker", "example", "download"}
    monitoring = {"prometheus", "grafana"} if profiles else set()
    assert services.keys() == expected | monitoring | {"secrets"}


def test_a_gpu_is_reserved_for_what_encodes_and_torch_comes_with_cuda() -> None:
    services = read_compose(GPU)["services"]

    for service in ours(services).values():
        assert service["build"]["args"]["TORCH_INDEX"] == ""
        assert service["image"].endswith("-cuda")
    for name in ("api", "worker"):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_each_service_runs_a_command_that_exists_and_is_in_the_readme(
    services: dict[str, Any],
) -> None:
    commands = {name: service["command"] for name, service in ours(services).items()}

    assert commands["api"] == ["serve"]
    assert commands["worker"] == ["worker"]
    for command in commands.values():
        check_command(command)


def test_each_service_is_given_settings_that_exist(services: dict[str, Any]) -> None:
    for service in ours(services).values():
        check_settings(sorted(service["environment"].keys() - FOREIGN - passwords_of_others()))


def test_the_backend_is_not_given_the_passwords_of_other_services(
    services: dict[str, Any],
) -> None:
    assert passwords_of_others() == {"GRAFANA_PASSWORD", "LABEL_STUDIO_PASSWORD"}
    for service in ours(services).values():
        # What is set here is taken, whatever `env_file` says.
        assert {service["environment"][name] for name in passwords_of_others()} == {""}


def test_what_is_waited_for_has_a_check_or_ends(services: dict[str, Any]) -> None:
    image = "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()
    for service in services.values():
        for name, wait in (service.get("depends_on") or {}).items():
            awaited = services[name]
            check = awaited.get("healthcheck", {"test": image and name in ours(services)})
            if wait["condition"] == "service_healthy":
                assert check.get("test"), name
            if wait["condition"] == "service_completed_successfully":
                assert awaited["restart"] == "no", name


def test_our_containers_can_do_no_more_than_they_must(services: dict[str, Any]) -> None:
    for service in [*ours(services).values(), services["secrets"]]:
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged")


def test_ports_are_open_to_this_machine_alone(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]

    assert {port["host_ip"] for port in published} == {"127.0.0.1"}
    assert len({port["published"] for port in published}) == len(published)


def test_who_may_write_to_redis_is_one_of_ours(services: dict[str, Any]) -> None:
    (network,) = services["redis"]["networks"]

    members = {name for name, service in services.items() if network in service["networks"]}
    assert members - ours(services).keys() == {"redis"}


def test_images_are_pinned(services: dict[str, Any]) -> None:
    for service in services.values():
        assert re.search(r":v?\d+\.\d+", service["image"]), service["image"]


def test_label_studio_may_call_the_backend_and_finds_it_under_a_name_with_a_dot(
    services: dict[str, Any],
) -> None:
    label_studio = services["label-studio"]
    backend = urlsplit(services["example"]["environment"]["BACKEND_URL"])

    assert label_studio["environment"]["ML_BLOCK_LOCAL_IP"] == "false"
    assert label_studio["environment"]["SSRF_PROTECTION_ENABLED"] == "false"
    assert "." in str(backend.hostname)
    assert any(
        backend.hostname in ((services["api"]["networks"][name] or {}).get("aliases") or [])
        for name in label_studio["networks"]
    )
    assert str(backend.port) == services["api"]["environment"]["PORT"]


def test_prometheus_and_grafana_find_what_they_read(services: dict[str, Any]) -> None:
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    environment = services["api"]["environment"]
    data = ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml"
    (source,) = yaml.safe_load(data.read_text())["datasources"]

    assert job["static_configs"][0]["targets"] == [urlsplit(environment["BACKEND_URL"]).netloc]
    assert job["basic_auth"]["username"] == environment["BASIC_AUTH_USER"]
    assert source["url"] == f"http://prometheus:{services['prometheus']['ports'][0]['target']}"
    for file in services["prometheus"]["volumes"] + services["grafana"]["volumes"]:
        assert file["type"] == "volume" or Path(file["source"]).is_dir(), file


# .env.example


def documented() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    assert all(not line or line.startswith("#") for line in lines)
    return dict(re.findall(r"^#([A-Za-z_]+)=(.*)$", "\n".join(lines), re.MULTILINE))


def passwords_of_others() -> set[str]:
    """Return the variables with passwords that the backend does not read."""
    settings = {name.upper() for name in Settings.model_fields}
    return {name for name in documented().keys() - settings if name.endswith("_PASSWORD")}


def interpolated() -> dict[str, str]:
    """Return each variable of the compose files with its default; the CPU's where they differ."""
    texts = [(ROOT / name).read_text() for name in reversed(GPU)]
    return dict(re.findall(r"\$\{([A-Z_]+):?-?((?:\$\{[^}]*\}|[^}])*)\}", "\n".join(texts)))


def test_env_example_has_every_variable_once_and_no_other() -> None:
    settings = {name.upper() for name in Settings.model_fields}

    assert documented().keys() == settings | interpolated().keys()


def test_env_example_has_the_defaults_of_the_backend() -> None:
    shown = {name.upper(): documented()[name.upper()] for name in Settings.model_fields}

    # As if all of them were set to what it shows.
    set_to_defaults = {name.lower(): value for name, value in shown.items() if value}
    assert Settings(**set_to_defaults) == Settings()  # type: ignore[arg-type]
    assert {name for name, value in shown.items() if not value} == {
        name.upper() for name, field in Settings.model_fields.items() if field.default is None
    }


def test_env_example_has_the_defaults_of_the_compose_file() -> None:
    defaults = interpolated()
    defaults["LABEL_STUDIO_HOST"] = "http://localhost:8080"

    for name in interpolated().keys() - {name.upper() for name in Settings.model_fields}:
        assert documented()[name] == defaults[name], name


def test_a_copy_of_env_example_changes_nothing(tmp_path: Path) -> None:
    plain = read_compose(profiles=["monitoring"])
    copied = read_compose(profiles=["monitoring"], environment=documented_as_environment())

    assert copied == plain


def documented_as_environment() -> dict[str, str]:
    # What the compose file itself decides, and what is empty by default, says nothing.
    return {name: value for name, value in documented().items() if value and name in interpolated()}


# Secrets


def make_secrets(folder: Path, **environment: str) -> dict[str, str]:
    subprocess.run(
        [sys.executable, str(MAKE_SECRETS)],
        env={"PATH": os.environ["PATH"], "SECRETS_DIR": str(folder), **environment},
        check=True,
    )
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_secrets_are_made_once_and_differ(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()

    made = make_secrets(tmp_path / "one")

    assert make_secrets(tmp_path / "one") == made
    other = make_secrets(tmp_path / "two")
    assert made.keys() == other.keys()
    assert all(made[name] != other[name] for name in made)
    assert all(len(value) >= 16 for value in made.values())


def test_the_backend_reads_the_secrets_that_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, services: dict[str, Any]
) -> None:
    made = make_secrets(tmp_path)
    for name, value in services["api"]["environment"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path))

    settings = Settings.read()

    assert settings.label_studio() == (
        "http://label-studio:8080",
        made["label_studio_api_key"],
    )
    assert settings.basic_auth_pass is not None
    assert settings.basic_auth_pass.get_secret_value() == made["basic_auth_pass"]
    assert settings.database == (
        f"postgresql+psycopg://clip:{made['clip_database_password']}@postgres:5432/clip"
    )


def test_a_chosen_password_reaches_label_studio_as_it_is(tmp_path: Path) -> None:
    password = 'it\'s $HOME; `x` "y"'

    make_secrets(tmp_path, LABEL_STUDIO_PASSWORD=password, LABEL_STUDIO_API_KEY="a" * 40)

    sourced = subprocess.run(
        ["sh", "-c", f'. {tmp_path}/label_studio.env; printf %s "$LABEL_STUDIO_PASSWORD"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert sourced.stdout == password


def test_every_secret_file_that_is_named_is_made(tmp_path: Path) -> None:
    made = make_secrets(tmp_path)
    texts = [
        (ROOT / name).read_text()
        for name in (
            "docker-compose.yml",
            "deploy/prometheus/prometheus.yml",
            "deploy/compose/create_databases.sh",
        )
    ]

    named = set(re.findall(r"(?:/run/secrets|\$SECRETS_DIR)/([\w.]+)", "\n".join(texts)))
    assert named <= made.keys()
    assert "label_studio.env" in named
