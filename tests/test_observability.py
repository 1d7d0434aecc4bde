"""The dashboard and the alerts against the metrics that the service has, without Prometheus and Grafana."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

DOCKER = Path(__file__).parent.parent / "docker"
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "kindred.json").read_text())
ALERTS = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
SCRAPES = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
TARGETS = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS = [target["expr"] for target in TARGETS] + [alert["expr"] for alert in ALERTS]
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
WORDS = {"and", "or", "unless", "by", "ignoring", "on", "group_left", "group_right", "bool", "offset"}
# What is there on a GPU only, and what Prometheus itself adds.
ELSEWHERE = {"kindred_gpu_memory_free_bytes", "kindred_gpu_memory_size_bytes", "up"}
LABELS = {"route", "status", "stage", "code", "kind", "outcome", "le", "worker", "device", "instance", "job"}


def names(expression: str) -> set[str]:
    """Return the metrics that a PromQL expression asks for."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", expression)
    bare = re.sub(r"\b(by|ignoring|on)\s*\([^)]*\)", " ", bare)
    return set(re.findall(r"\b[a-z_][a-z0-9_]*\b(?!\s*\()", bare)) - WORDS


def labels(expression: str) -> set[str]:
    """Return the labels that it names."""
    matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
    grouped = re.findall(r"\b(?:by|ignoring|on)\s*\(([^)]*)\)", expression)
    return {*matched, *(label.strip() for group in grouped for label in group.split(","))}


@pytest.fixture
def exposed(client: TestClient) -> set[str]:
    """Return every name that a sample of the service can have."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {family.name + end for family in families for end in SUFFIXES.get(family.type, ("",))}


def test_an_expression_is_read_as_prometheus_reads_it() -> None:
    expression = 'histogram_quantile(0.9, sum by (le, a) (rate(x_bucket{b=~"c"}[5m]))) / ignoring (d) y > 1 and z'
    assert names(expression) == {"x_bucket", "y", "z"}
    assert labels(expression) == {"le", "a", "b", "d"}


def test_every_metric_that_the_dashboard_and_the_alerts_ask_for_is_exposed(exposed: set[str]) -> None:
    asked = set().union(*map(names, EXPRESSIONS))
    assert len(asked) >= 20
    assert asked - exposed - ELSEWHERE == set()


def test_every_label_that_they_name_is_one() -> None:
    assert set().union(*map(labels, EXPRESSIONS)) - LABELS == set()
    assert set(re.findall(r"\{\{(\w+)\}\}", " ".join(each["legendFormat"] for each in TARGETS))) <= LABELS


def test_every_alert_has_its_paragraph_in_the_runbook() -> None:
    headings = re.findall(r"^#+ (\w+)$", (DOCKER / "README.md").read_text(), re.MULTILINE)
    for alert in ALERTS:
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert alert["annotations"]["summary"].endswith(".")
        assert alert["annotations"]["runbook"] == f"docker/README.md#{alert['alert'].lower()}"
        assert alert["alert"] in headings


def test_the_panels_neither_overlap_nor_share_an_id() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_grafana_is_given_the_data_source_that_the_panels_name() -> None:
    def provisioned(*path: str) -> Any:
        return yaml.safe_load(DOCKER.joinpath("grafana", "provisioning", *path).read_text())

    (source,) = provisioned("datasources", "prometheus.yml")["datasources"]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}
    compose = yaml.safe_load((DOCKER.parent / "docker-compose.yml").read_text())["services"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose
    (provider,) = provisioned("dashboards", "kindred.yml")["providers"]
    assert f"./docker/grafana/dashboards:{provider['options']['path']}:ro" in compose["grafana"]["volumes"]
    assert set(SCRAPES[0]["dns_sd_configs"][0]["names"]) <= compose.keys()


def test_promtool_accepts_the_alerts_and_the_configuration() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    for words in (["rules", "alerts.yml"], ["config", "prometheus.yml"]):
        folder = DOCKER / "prometheus"
        ran = subprocess.run([promtool, "check", *words], cwd=folder, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_promtool_understands_every_panel(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    rules = [
        {"record": f"panel:{number}", "expr": target["expr"].replace("$__rate_interval", "5m")}
        for number, target in enumerate(TARGETS)
    ]
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    command = [promtool, "check", "rules", str(tmp_path / "panels.yml")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
