"""compose.yaml shows nothing to the network, starts for nobody without a password, locks every container."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployment import DOCKER, ROOT, VARIABLE, compose, with_defaults

SERVICES: dict[str, dict[str, Any]] = compose()["services"]
PLAIN = with_defaults(SERVICES)
GRAFANA_HOLES = ["12.3.0", "12.4.0-10", "13.0.0-8", "13.1.0-5", "13.2.0-1"]
"""CVE-2026-76154: single versions, or the patch levels of a minor version."""


def patches(holes: list[str]) -> set[tuple[int, ...]]:
    """Each version that a line of the table names."""
    found = set()
    for line in holes:
        first, _, last = line.partition("-")
        major, minor, patch = (int(part) for part in first.split("."))
        found |= {(major, minor, level) for level in range(patch, int(last or patch) + 1)}
    return found


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(PLAIN[request.param])


def test_every_port_is_shown_to_this_machine_alone(service: dict[str, Any]) -> None:
    for port in service.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)
    assert service.get("network_mode") is None


def test_the_port_of_locust_is_not_published() -> None:
    assert not [name for name, one in PLAIN.items() if name.startswith("locust") and one.get("ports")]
    assert compose()["networks"]["crew"] == {"internal": True}
    assert {name for name, one in PLAIN.items() if "crew" in one["networks"]} == {
        "locust-master",
        "locust-worker",
    }


def test_a_service_holds_nothing_that_it_needs_no_reason_for(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", []))
    reasons = service.get("x-reason", {})
    assert "cap_add" not in service or reasons["cap_add"]
    user = service.get("user")
    assert reasons["user"] if user is None else re.fullmatch(r"[1-9]\d*:\d+", user)


def test_an_image_is_named_with_a_version_that_a_variable_may_change(service: dict[str, Any]) -> None:
    _, _, tag = service["image"].rpartition(":")
    assert re.match(r"v?\d+\.\d+\.\d+", tag)
    assert "latest" not in tag
    written = [one["image"] for one in SERVICES.values() if with_defaults(one["image"]) == service["image"]]
    assert all(VARIABLE.search(image) for image in written)


def test_grafana_is_a_version_without_a_known_hole() -> None:
    _, _, tag = PLAIN["grafana"]["image"].rpartition(":")
    assert tuple(int(part) for part in tag.split(".")) not in patches(GRAFANA_HOLES)
    assert (13, 2, 1) in patches(GRAFANA_HOLES)


def test_grafana_knows_no_password_but_the_one_that_was_given() -> None:
    environment = SERVICES["grafana"]["environment"]
    found = VARIABLE.fullmatch(environment["GF_SECURITY_ADMIN_PASSWORD"])
    assert found is not None
    assert (found[1], found[2]) == ("GRAFANA_ADMIN_PASSWORD", ":?")
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert "\nGRAFANA_ADMIN_PASSWORD=\n" in (DOCKER / ".env.example").read_text()


def test_the_example_names_every_variable_with_its_default() -> None:
    text = (DOCKER / ".env.example").read_text()
    named = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", text, re.MULTILINE))
    in_compose = {
        found[1]: found[3] or "" for found in VARIABLE.finditer((DOCKER / "compose.yaml").read_text())
    }
    assert in_compose.keys() <= named.keys()
    versions = {name for name in in_compose if name.endswith(("_TAG", "_PORT", "BASE_IMAGE"))}
    assert {name: named[name] for name in versions} == {name: in_compose[name] for name in versions}


def test_workers_see_the_run_folder_where_the_master_sees_it() -> None:
    load = [PLAIN[name] for name in ("locust-master", "locust-worker", "ullage")]
    assert all(one["volumes"] == ["runs:/work/runs"] for one in load)


def test_files_that_are_mounted_exist_and_cannot_be_written(service: dict[str, Any]) -> None:
    for volume in service.get("volumes", []):
        source, _, rest = volume.partition(":")
        if source.startswith("."):
            assert (DOCKER / source).is_dir() or source.startswith("../dashboards")
            assert rest.endswith(":ro")


def test_prometheus_looks_where_the_servers_listen() -> None:
    jobs = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    looked = {(name, one["port"]) for job in jobs for one in job["dns_sd_configs"] for name in one["names"]}
    published = {
        (name, int(port.rpartition(":")[2]))
        for name, one in PLAIN.items()
        for port in one.get("ports", [])
        if name in ("twin", "vllm", "lmdeploy")
    }
    assert published <= looked
    assert {name for name, _ in looked} <= PLAIN.keys()
    assert all("shown" in PLAIN[name]["networks"] for name, _ in looked)


def test_boards_find_their_data_source_and_their_folder() -> None:
    provisioning = DOCKER / "grafana/provisioning"
    sources = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    providers = yaml.safe_load((provisioning / "dashboards/ullage.yaml").read_text())["providers"]
    assert [one["uid"] for one in sources] == ["prometheus"]
    targets = {volume.split(":")[1] for volume in PLAIN["grafana"]["volumes"]}
    assert {one["options"]["path"] for one in providers} <= targets
    assert not any(one["allowUiUpdates"] for one in providers)


def compose_command() -> list[str] | None:
    """Docker Compose 2 needs no daemon to check a file; version 1 knows less than half of it."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            said = subprocess.run(
                [*command, "version", "--short"], capture_output=True, text=True, timeout=20
            )
            if said.returncode == 0 and said.stdout.lstrip("v").startswith(("2.", "3.", "4.", "5.")):
                return command
    return None


def checked(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = compose_command()
    if command is None:
        pytest.skip("Docker Compose 2 is not here")
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    nothing_set = ["--env-file", os.devnull]
    return subprocess.run(
        [*command, *nothing_set, "--file", str(DOCKER / "compose.yaml"), *options],
        capture_output=True,
        text=True,
        timeout=30,
        env={**environ, **variables},
    )


def test_compose_itself_takes_every_profile() -> None:
    done = checked("--profile", "*", "config", "--services", GRAFANA_ADMIN_PASSWORD="x")
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == SERVICES.keys()


def test_compose_itself_refuses_to_start_without_a_password() -> None:
    done = checked("config", "--quiet")
    assert done.returncode != 0
    assert "GRAFANA_ADMIN_PASSWORD" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("promtool", "check", "config", DOCKER / "prometheus/prometheus.yml"),
        ("amtool", "check-config", DOCKER / "alertmanager/alertmanager.yml"),
    ],
    ids=["prometheus", "alertmanager"],
)
def test_the_tool_takes_its_configuration(command: tuple[str | Path, ...]) -> None:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not here")
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
