"""Prometheus itself watches a loaded server by the files of deploy/: every query of a dashboard has data, and every rule what
it reads."""
import concurrent.futures
import contextlib
import copy
import json
import random
import re
import signal
import socket
import subprocess
import time

import models
import pytest
import yaml
from conftest import LOGS, READY_S
from lib import prometheus, server
from lib.postgres import Cluster
from test_oidc import AUDIENCE, ISSUER, Login
from test_tls import Authority

DEPLOY = server.REPO / "deploy"
RULES = DEPLOY / "prometheus" / "rempart.rules.yml"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
WORDS = "time year people way day man thing woman life child world school state family student group country".split()
LOAD_S, CLIENTS = 8, 8
# What Grafana puts in the place of its variables.
VARIABLES = {"__rate_interval": "1m", "__range": "1m", "job": "rempart", "instance": ".*", "model_name": ".*"}
FIRING = {"RempartAuditNotCheckpointed", "RempartLoginKeysRefused"}
# A scrape that failed takes what there was for a moment, and the next one, a second later, brings it back.
SCRAPED_S = 30
# What comes last of what `watching` does.
LAST = ("rate(rempart_limited_total[1m])", "rempart_tls_handshakes_failed_total > 0",
        *(f'ALERTS{{alertname="{name}",alertstate="firing"}}' for name in sorted(FIRING)))
# What the load has done, where a series that is there and stays at 0 would be wrong.
DONE = (
    "model:requests:rate5m", "model:prompt_tokens:rate5m", "model:generation_tokens:rate5m",
    "model:prefix_cache_hits:ratio_rate5m", "instance:http_errors:ratio_rate5m",
    # Each project may fill half of the queue.
    'instance:rejections:rate5m{reason="project_queue"}',
    "rempart_ready", "rempart_queue_requests_limit", "rempart_http_connections_limit", "process_cpu_seconds_total",
    "rate(vllm:request_prefill_time_seconds_sum[5m])", "rate(vllm:prompt_tokens_cached_total[5m])", "rate(vllm:spec_decode_num_draft_tokens_total[5m])",
    "rate(vllm:spec_decode_num_drafts_total[5m])",
    "rate(rempart_encoder_tokens_total[5m])", "rate(rempart_usage_rows_total[5m])",
    'rempart_project_requests_total{outcome="completed"}', "rempart_project_prompt_tokens_total",
    "rempart_project_prompt_tokens_cached_total", 'count(rempart_project_generation_tokens_total{model_name="m"} > 0) > 1',
    'http_requests_total{status="429"}', "rempart_access_denied_total", "rempart_limited_total",
    "rempart_audit_checkpoint_failures_total", 'rempart_oidc_reloads_total{result="failure"}',
    "rempart_tls_handshakes_failed_total", "max_over_time(vllm:num_requests_running[5m])",
    "max_over_time(vllm:num_requests_waiting[5m])", "max_over_time(rempart_queue_requests[5m])",
    "max_over_time(vllm:kv_cache_usage_perc[5m])")


def rempart(*arguments):
    done = subprocess.run([server.binary(), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels(file):
    return [panel for panel in json.loads(file.read_text())["panels"] if panel["type"] not in ("row", "text")]


def expanded(query, board):
    """A panel's query as Grafana sends it."""
    values = VARIABLES | {one["name"]: one["query"] for one in board["templating"]["list"] if one["type"] == "textbox"}
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], query)


class Watched:
    """A server with all that has metrics, and the folder of its files."""

    def __init__(self, folder, database):
        self.folder, self.database = folder, ["--database", database, "--secret", folder / "secret"]
        self.login, authority = Login(folder / "keys.json"), Authority(folder)
        authority.sign("server")
        self.checkpoints = folder / "checkpoints"
        model, encoder = (models.fetch(name, models.default_directory()) for name in ("smollm2", "minilm"))
        self.server = server.Server(model, LOGS / "prometheus.log", authority=folder / "ca.pem", arguments=[
            encoder, *self.database, "--served-model-name", "m", "--sequences-max", 2, "--queue-requests-max", 2,
            "--tls-certificate", folder / "server.pem", "--tls-key", folder / "server-key.pem",
            "--oidc-issuer", ISSUER, "--oidc-audience", AUDIENCE, "--oidc-keys", self.login.file,
            "--audit-checkpoints", self.checkpoints, "--audit-checkpoint-interval-s", 1, "--project-metrics"])

    def prepare(self):
        """Makes the keys of those who ask."""
        self.server.wait_ready(READY_S)
        self.server.key = re.search(r"^sk-rempart-\S+$", self.server.log.read_text(), re.MULTILINE)[0]
        # Before the key of the scrapes: a server that has noticed that one knows this one, too.
        rempart("project", "create", "sales", *self.database)
        self.sales = rempart("key", "create", "seller", "--project", "sales", *self.database)
        scraping = rempart("key", "create", "prometheus", "--role", "auditor", *self.database)
        (self.folder / "rempart.key").write_text(scraping + "\n")
        self.limited = rempart("key", "create", "limited", *self.database)
        rempart("limit", "set", *self.database[:2], "--key", self.limited.split("-")[2], "requests-per-minute=1")

    def configuration(self):
        """deploy/prometheus/prometheus.yml for this server, with other paths and times."""
        read = yaml.safe_load((RULES.parent / "prometheus.yml").read_text())
        read["global"] = dict.fromkeys(read["global"], "1s")
        read["rule_files"] = [str(RULES.parent / name) for name in read["rule_files"]]
        (job,) = read["scrape_configs"]
        job["tls_config"]["ca_file"] = str(self.folder / "ca.pem")
        job["authorization"]["credentials_file"] = str(self.folder / "rempart.key")
        job["static_configs"] = [{"targets": [f"127.0.0.1:{self.server.port}"]}]
        return yaml.safe_dump(read)

    def chat(self, words, tokens=24, key=None, **more):
        asked = copy.copy(self.server)
        asked.key = key or asked.key
        return asked.post("/v1/chat/completions", {
            "model": "m", "max_tokens": tokens, "messages": [{"role": "user", "content": words}], **more})

    def load(self):
        """Answers, guesses, vectors and refusals of a full queue, for two projects."""
        for _ in range(2):
            self.chat("Repeat: one two three one two three one two three one two three", 40, temperature=0)
            self.server.post("/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": WORDS})
        until, refused = time.monotonic() + LOAD_S, []

        def ask(at):
            rng, key = random.Random(at), (self.server.key, self.sales)[at % 2]
            while time.monotonic() < until:
                try:
                    self.chat(" ".join(rng.choices(WORDS, k=40)), key=key)
                except server.ServerError as error:
                    refused.append(str(error))
                    time.sleep(0.1)
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(ask, range(CLIENTS)))
        assert refused and all(" 503 " in error for error in refused), refused[:3]

    def fail(self):
        """What is counted from its first time on only: keys and limits, files that can't be used, a stranger to TLS."""
        self.checkpoints.unlink()
        self.checkpoints.mkdir()
        self.login.file.write_text("no keys")
        self.server.process.send_signal(signal.SIGHUP)
        for key, wanted in (("sk-wrong", " 401 "), (self.limited, " 429 ")):
            with pytest.raises(server.ServerError, match=wanted):
                for _ in range(3):
                    self.chat("Hi", 1, key)
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as plain:
            plain.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
            plain.recv(64)


def eventually(look):
    """What a look finds, once that is something; what it found last where it never was."""
    deadline = time.monotonic() + SCRAPED_S
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def without_data(watching, asked):
    """Those queries that never have data. Each is named, and has the labels that all its series are to have."""
    def has_data(_, query, labels):
        found = watching.series(query)
        return found and all(labels <= of.keys() for of, _ in found)

    def all_have():
        asked[:] = [one for one in asked if not has_data(*one)]
        return not asked
    eventually(all_have)
    return asked


@pytest.fixture(scope="module")
def watching(current, tmp_path_factory):
    """A Prometheus that has watched a server under load, and still does."""
    current.close()
    with contextlib.ExitStack() as stack:
        watched = Watched(tmp_path_factory.mktemp("watched"), stack.enter_context(Cluster()).url)
        stack.enter_context(watched.server)
        watched.prepare()
        running = stack.enter_context(prometheus.Prometheus(watched.configuration()))
        running.wait_for('up{job="rempart"} == 1')
        watched.load()
        watched.fail()
        # The last of it is scraped and evaluated.
        for expression in LAST:
            running.wait_for(expression)
        yield running


def test_promtool_finds_nothing_wrong():
    prometheus.promtool("check", "rules", RULES)
    prometheus.promtool("check", "config", "--syntax-only", RULES.parent / "prometheus.yml")
    prometheus.promtool("test", "rules", RULES.parent / "rempart.rules.test.yml")


def test_each_rule_is_tested_and_each_alert_told_of():
    tests = (RULES.parent / "rempart.rules.test.yml").read_text()
    page = (server.REPO / "docs" / "monitoring.md").read_text()
    for rule in rules():
        if "record" in rule:
            assert re.search(rf"\b{rule['record']}\b", tests), rule["record"]
            continue
        assert f'alertname="{rule["alert"]}"' in tests and f"`{rule['alert']}`" in page, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical") and set(rule["annotations"]) == {"summary", "description"}
    told = set(re.findall(r"`(Rempart[A-Z]\w+)`", page))
    assert told == {rule["alert"] for rule in rules() if "alert" in rule}


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_dashboards_can_be_imported(file):
    board = json.loads(file.read_text())
    assert board["uid"] == file.stem and board["schemaVersion"] and "id" not in board
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
    variable = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels(file):
        assert panel["datasource"] == variable and panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"] and all(target["datasource"] == variable for target in panel["targets"]), panel["title"]


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_each_panel_has_data(watching, file):
    board = json.loads(file.read_text())
    asked = [(panel["title"], expanded(target["expr"], board), set(re.findall(r"{{(\w+)}}", target["legendFormat"])))
             for panel in panels(file) for target in panel["targets"]]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            expression, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
            asked.append((variable["name"], expanded(expression, board), {label}))
    empty = without_data(watching, asked)
    assert not empty, "\n".join(map(str, empty))


def test_each_rule_has_what_it_reads(watching):
    evaluated = {rule["name"]: rule for rule in watching.rules()}
    asked = []
    for rule in rules():
        name = rule.get("record") or rule["alert"]
        assert evaluated[name]["health"] == "ok" and not evaluated[name].get("lastError"), evaluated[name]
        read = [name] if "record" in rule else prometheus.selectors(rule["expr"])
        assert read, name
        asked += [(name, selector, set()) for selector in read]
    missing = without_data(watching, asked)
    assert not missing


@pytest.mark.parametrize("expression", DONE)
def test_what_was_done_is_counted(watching, expression):
    assert eventually(lambda: any(value > 0 for _, value in watching.series(expression)))


def test_what_does_not_exist_is_missed(watching):
    """What the tests above look for can be told from what is there."""
    assert watching.series("sum(rate(vllm:prompt_tokens_total[1m]))")
    for wrong in ("sum(rate(vllm:prompt_tokens_gone_total[1m]))", 'rempart_rejections_total{reason="gone"}', "vector(0) / 0"):
        assert not watching.series(wrong), wrong
    assert prometheus.selectors('sum by (job) (rate(a:b_total{c="d(e)"}[5m])) > 0 or (f unless f offset 1h) > time() - 1e6') == [
        'a:b_total{c="d(e)"}', "f"]


def test_alerts_fire_with_words_that_an_operator_can_read(watching):
    def look():
        alerts = watching.get("alerts")["alerts"]
        firing = {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}
        return (alerts, firing) if firing >= FIRING else None
    found = eventually(look)
    assert found, "they do not fire"
    alerts, firing = found
    assert not firing & {"RempartDown", "RempartAbsent", "RempartStalled", "RempartUsageNotRecorded"}
    for alert in alerts:
        for text in alert["annotations"].values():
            assert "<" not in text and "{{" not in text and "  " not in text, alert
