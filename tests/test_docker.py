"""The Dockerfile and the compose file against the project they pack, without a Docker engine."""

import json
import re
import shlex
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import uvicorn
import yaml  # type: ignore[import-untyped]
from fastapi import FastAPI
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from indexer.__main__ import app as indexer_app
from indexer.encoder import Encoder
from service import cli
from service.app import create_app
from service.settings import ServiceSettings
from tests.conftest import build_snapshot

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "docker" / "Dockerfile"
COMPOSE = ROOT / "docker-compose.yml"
TARGETS = ("indexer", "service")
VARIANTS = ("cpu", "gpu")

Step = tuple[str, str]
"""An instruction of a Dockerfile and the rest of its line."""


def read_stages() -> dict[str, list[Step]]:
    """Return the stages of the Dockerfile by name; the first step of each is its FROM."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.strip() and not line.startswith("#")]
    stages: dict[str, list[Step]] = {}
    steps: list[Step] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            steps = stages[rest.split(" AS ")[1]] = []
        steps.append((instruction, rest))
    return stages


def steps_of(target: str) -> list[Step]:
    """Return all steps that make a target, those of the stages it stands on first."""
    stages = read_stages()
    if target not in stages:
        return []
    return [*steps_of(stages[target][0][1].split(" AS ")[0]), *stages[target]]


def last(target: str, instruction: str) -> str:
    """Return what holds in the end."""
    return [rest for name, rest in steps_of(target) if name == instruction][-1]


def environment_of(target: str) -> dict[str, str]:
    words = [word for name, rest in steps_of(target) if name == "ENV" for word in shlex.split(rest)]
    return dict(word.split("=", maxsplit=1) for word in words)


def copied_paths() -> list[str]:
    """Return what the Dockerfile copies out of the repository."""
    copies = [rest.split() for steps in read_stages().values() for name, rest in steps if name == "COPY"]
    return [path.rstrip("/") for words in copies if not words[0].startswith("--from") for path in words[:-1]]


def compose(environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Read the compose file, its variables filled in."""

    def value(match: re.Match[str]) -> str:
        return (environment or {}).get(match[1]) or match[2]

    filled: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{(\w+):-([^}]*)\}", value, COMPOSE.read_text()))
    return filled


def services(*, ours: bool = True) -> list[Any]:
    """Return the services that are built from this repository, or all."""
    found = compose()["services"].items()
    return [pytest.param(service, id=name) for name, service in found if "build" in service or not ours]


def project() -> dict[str, Any]:
    facts: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return facts


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_runs_as_a_user_who_is_not_root(target: str) -> None:
    assert last(target, "USER") == "10001:10001"


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_starts_its_console_script_without_a_shell(target: str) -> None:
    command = json.loads(last(target, "ENTRYPOINT"))
    assert command == [f"kindred-{target}"]
    assert command[0] in {script.name for script in entry_points(group="console_scripts")}
    assert command[0] in project()["scripts"]


def test_the_variants_of_the_dockerfile_are_cpu_and_gpu() -> None:
    assert tuple(re.findall(r" (cpu|gpu|\w+)\) (?:\$|python)", last("dependencies", "RUN"))) == VARIANTS
    assert last("dependencies", "ARG") == "VARIANT=cpu"


def test_the_dependencies_of_the_gpu_variant_are_those_of_the_project_and_of_its_extras() -> None:
    words = shlex.split(last("dependencies", "RUN"))
    program = words[words.index("-c") + 1]
    printed = subprocess.run(
        [sys.executable, "-c", program, "gpu"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    extras = project()["optional-dependencies"]
    assert printed.splitlines() == [*project()["dependencies"], *extras["gpu"], *extras["otel"]]


def test_the_cpu_variant_installs_what_is_locked_by_hash_and_torch_of_a_pinned_version() -> None:
    steps = last("dependencies", "RUN").split("cpu) ")[1].split(" ;;")[0].split("&&")
    index = "https://download.pytorch.org/whl/cpu"
    assert [" ".join(step.split()) for step in steps] == [
        "$install --no-deps --require-hashes --requirement requirements-cpu.lock",
        f"$install --no-deps --index-url {index} --constraint constraints.txt torch torchvision",
    ]


def test_all_that_the_dockerfile_copies_exists_and_nothing_else_is_sent_to_the_engine() -> None:
    assert [path for path in copied_paths() if not (ROOT / path).exists()] == []
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert patterns[0] == "*"
    assert {pattern[1:] for pattern in patterns if pattern.startswith("!")} == set(copied_paths())


def test_the_licence_on_the_label_is_that_of_the_project() -> None:
    assert f'org.opencontainers.image.licenses="{project()["license"]}"' in last("base", "LABEL")


def test_every_setting_that_the_files_name_is_one() -> None:
    named = set(re.findall(r"KINDRED_(\w+)", DOCKERFILE.read_text() + COMPOSE.read_text()))
    assert "ADMIN_KEY" in named
    assert {name.lower() for name in named} <= ServiceSettings.model_fields.keys()


def test_the_settings_of_the_image_listen_where_it_exposes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment_of("service").items():
        if name.startswith("KINDRED_"):
            monkeypatch.setenv(name, value)
    settings = ServiceSettings()
    assert (settings.host, settings.port) == ("0.0.0.0", int(last("service", "EXPOSE")))  # noqa: S104
    assert settings.snapshots == Path("/snapshots")


def test_the_health_check_fails_until_a_snapshot_is_served(source: Path, tmp_path: Path, encoder: Encoder) -> None:
    command = json.loads(last("service", "HEALTHCHECK").partition(" CMD ")[2])
    assert command[0] == "python"

    def check(port: int) -> subprocess.CompletedProcess[str]:
        # A proxy must not be asked about this very machine.
        environment = {"KINDRED_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
        return subprocess.run(
            [sys.executable, *command[1:]], env=environment, capture_output=True, text=True, check=False
        )

    settings = ServiceSettings.model_validate({"snapshots": tmp_path / "snapshots", "refresh_seconds": 0.05})
    with listening(create_app(settings)) as port:
        unready = check(port)
        build_snapshot(source, tmp_path / "snapshots", encoder)
        deadline = time.monotonic() + 10
        while check(port).returncode != 0:
            assert time.monotonic() < deadline, "it did not become ready in time"
    assert unready.returncode == 1
    assert "no snapshot has been published" in unready.stdout
    assert check(port).returncode == 1


def manifests() -> list[Any]:
    documents = yaml.safe_load_all((ROOT / "docker" / "kubernetes" / "kindred.yml").read_text())
    return [pytest.param(each, id=f"{each['kind']}-{each['metadata']['name']}") for each in documents]


def pod_specs() -> list[Any]:
    found = {each.id: each.values[0]["spec"] for each in manifests()}
    jobs = found["CronJob-kindred-indexer"]["jobTemplate"]["spec"]
    return [found["Deployment-kindred"]["template"]["spec"], jobs["template"]["spec"]]


@pytest.mark.parametrize("manifest", manifests())
@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
def test_kubernetes_understands_each_manifest_to_the_last_field(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("pod", pod_specs())
def test_each_pod_is_shut_in_and_runs_what_the_image_is_made_for(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    target = container["name"]
    user = int(last(target, "USER").split(":")[0])
    assert container["image"] == f"kindred-{target}:cpu"
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsNonRoot"]) == (user, True)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    mounts = {each["mountPath"]: each.get("readOnly", False) for each in container["volumeMounts"]}
    assert mounts["/pictures"] is True
    assert mounts["/snapshots"] is (target == "service")
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}


def test_the_probes_of_the_pod_ask_where_the_image_listens(client: TestClient) -> None:
    (container,) = pod_specs()[0]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": int(last("service", "EXPOSE"))}]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert client.get(container[probe]["httpGet"]["path"]).status_code == 200


def test_every_command_of_the_guide_is_understood() -> None:
    guide = (ROOT / "docker" / "README.md").read_text()
    lines = re.findall(r"^(kindred(?:-indexer)?) ((?:keys )?[a-z]+)(.*?)(?:\s+#.*)?$", guide, re.MULTILINE)
    assert len(lines) > 6
    for program, command, rest in lines:
        app = indexer_app if program == "kindred-indexer" else cli.app
        told = CliRunner().invoke(app, [*command.split(), "--help"])
        assert told.exit_code == 0, f"{program} {command}"
        assert [flag for flag in re.findall(r"--[a-z-]+", rest) if flag not in told.output] == []


@contextmanager
def listening(app: FastAPI) -> Iterator[int]:
    """Serve an app on a free port of this machine."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("service", services(ours=False))
def test_each_compose_service_is_shut_in(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "/tmp" in service["tmpfs"]  # noqa: S108 - a path in the container
    assert not {"privileged", "cap_add", "user", "network_mode", "pid", "ipc"} & service.keys()


@pytest.mark.parametrize("service", services())
def test_each_compose_service_builds_a_target_and_variant_that_exist(service: dict[str, Any]) -> None:
    build = service["build"]
    target, variant = build["target"], build["args"]["VARIANT"]
    assert ROOT / build["context"] / build["dockerfile"] == DOCKERFILE
    assert target in TARGETS
    assert variant in VARIANTS
    assert service["image"] == f"kindred-{target}:{variant}"
    assert (variant == "gpu") == ("gpu" in service.get("profiles", [])) == ("deploy" in service)


@pytest.mark.parametrize("service", services())
def test_each_compose_service_reads_pictures_and_keeps_snapshots_and_models(service: dict[str, Any]) -> None:
    target = service["build"]["target"]
    mounts = {path: (name, mode) for name, path, *mode in (volume.split(":") for volume in service["volumes"])}
    assert mounts == {
        "/pictures": ("demo", ["ro"]),
        environment_of(target)["KINDRED_SNAPSHOTS"]: ("snapshots", []),
        environment_of(target)["HOME"]: ("models", []),
    }
    assert Path(environment_of(target)["HF_HOME"]).is_relative_to("/models")
    assert {name for name, _ in mounts.values()} == compose()["volumes"].keys() - {"prometheus", "grafana"}


def test_own_pictures_take_the_place_of_the_demo_collection() -> None:
    found = compose({"PICTURES": "/my/photos", "LABELS": "parent"})["services"]
    for name in ("indexer", "service", "indexer-gpu", "service-gpu"):
        assert "/my/photos:/pictures:ro" in found[name]["volumes"]
    assert found["indexer-gpu"]["command"] == ["build", "/pictures", "--labels=parent"]


def test_the_service_waits_for_the_indexer_of_its_variant() -> None:
    found = compose()["services"]
    for variant in ("", "-gpu"):
        waits = found[f"service{variant}"]["depends_on"]
        assert waits == {f"indexer{variant}": {"condition": "service_completed_successfully"}}
        assert found[f"indexer{variant}"]["restart"] == "no"


@pytest.mark.parametrize("service", services())
def test_only_the_service_gets_the_admin_key_and_it_has_no_default(service: dict[str, Any]) -> None:
    has_key = "KINDRED_ADMIN_KEY" in service["environment"]
    assert has_key == (service["build"]["target"] == "service")
    assert all(value is None for value in service["environment"].values())


def test_only_this_machine_can_reach_the_service_unless_told_otherwise() -> None:
    published = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert set(published) == {f"127.0.0.1:8000:{last('service', 'EXPOSE')}", "127.0.0.1:3000:3000"}


def test_what_observes_is_started_by_its_profile_alone_in_a_pinned_version() -> None:
    for service in compose()["services"].values():
        if "build" not in service:
            assert service["profiles"] == ["observe"]
            assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
            folders = [volume.split(":")[0] for volume in service["volumes"] if volume.startswith("./")]
            assert folders
            assert all((ROOT / folder).is_dir() for folder in folders)
