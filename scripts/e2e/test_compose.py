"""deploy/compose.yaml, as far as it can be checked without a container engine."""
import re

import pytest
import yaml
from lib import prometheus, server

DEPLOY = server.REPO / "deploy"
SERVICES = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_listens_on_this_machine_alone_and_has_no_rights(name):
    service = SERVICES[name]
    assert service["ports"] and all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in service["ports"])
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].split(":")[0]) > 0
    assert re.fullmatch(r"\S+:v?\d+\.\d+\.\d+", service["image"]), "the image is not pinned"
    assert not {"privileged", "network_mode", "pid", "devices"} & set(service)


@pytest.mark.parametrize("name", SERVICES)
def test_every_file_that_is_mounted_is_there_and_read_only(name):
    for volume in SERVICES[name]["volumes"]:
        source, target, *mode = volume.rsplit(":", 2) if volume.endswith(":ro") else volume.split(":")
        if source.startswith("./"):
            assert (DEPLOY / source).exists(), f"{source} for {target} is not there"
        if source.startswith((".", "$")):
            assert mode == ["ro"]


def test_prometheus_takes_its_configuration():
    prometheus.promtool("check", "config", DEPLOY / "prometheus" / "compose.yml")


def test_grafana_asks_the_prometheus_that_is_there():
    source, = yaml.safe_load((DEPLOY / "grafana" / "compose-datasource.yaml").read_text(encoding="utf-8"))["datasources"]
    name, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()
    assert SERVICES[name]["ports"] == [f"127.0.0.1:{port}:{port}"]
    scrape, = yaml.safe_load((DEPLOY / "prometheus" / "compose.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert scrape["job_name"] == "rempart"
    assert scrape["static_configs"] == [{"targets": ["rempart:8080"]}] and "8080:8080" in SERVICES["rempart"]["ports"][0]
