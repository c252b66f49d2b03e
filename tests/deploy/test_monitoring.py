"""Alerts fire for the fault that they are about and no other; they and the dashboard name metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml

from .files import ALERTS, DASHBOARD, DEPLOY, ROOT, kubernetes

RUNBOOK = ROOT / "docs" / "runbook.md"
METRICS = ROOT / "docs" / "metrics.md"
MINUTES = 30

GATEWAY, SERVER = 'component="hashlight-gateway", instance="g"', 'component="hashlight-shard-server", instance="s"'
# A minute of a series: `START+STEPxCOUNT`.
HEALTHY = {
    f"up{{{GATEWAY}}}": "1x800",
    f"up{{{SERVER}}}": "1x800",
    'hashlight_requests_total{route="/v1/search", status="200"}': "0+6000x800",
    'hashlight_requests_total{route="/v1/search", status="503"}': "0+1x800",
    'hashlight_requests_total{route="/v1/search", status="429"}': "0+10x800",
    'hashlight_request_seconds_bucket{route="/v1/search", le="0.1"}': "0+6000x800",
    'hashlight_request_seconds_bucket{route="/v1/search", le="2.5"}': "0+6001x800",
    'hashlight_request_seconds_bucket{route="/v1/search", le="+Inf"}': "0+6001x800",
    "hashlight_partial_answers_total": "7x800",
    f"hashlight_pending_attempts{{{GATEWAY}}}": "0x800",
    f"hashlight_served_version{{{GATEWAY}}}": "4x800",
    f"hashlight_coverage_ratio{{{GATEWAY}}}": "1x800",
    "hashlight_compaction_failures_total": "2x800",
    f"hashlight_log_age_seconds{{{GATEWAY}}}": "5x800",
    f'hashlight_router_replicas{{{GATEWAY}, state="connected"}}': "4x800",
    f'hashlight_router_replicas{{{GATEWAY}, state="lost"}}': "0x800",
    f"hashlight_router_map_age_seconds{{{GATEWAY}}}": "1x800",
    f"hashlight_keys_stale{{{GATEWAY}}}": "0x800",
    'hashlight_key_refusals_total{reason="missing"}': "0+6x800",
    'hashlight_key_refusals_total{reason="rate"}': "0+600x800",
    f"process_resident_memory_bytes{{{GATEWAY}}}": "1000000000x800",
    f"process_open_fds{{{GATEWAY}}}": "100x800",
    f"process_max_fds{{{GATEWAY}}}": "1000x800",
}
# Alert -> the series that its fault changes, and how many minutes it takes to fire.
FAULTS = {
    "HashlightGatewaysGone": ({f"up{{{GATEWAY}}}": "1x4 0x3 _x800"}, MINUTES),
    "HashlightProcessDown": ({f"up{{{SERVER}}}": "1x4 0x800"}, MINUTES),
    "HashlightPartialAnswers": ({"hashlight_partial_answers_total": "7+1x800"}, MINUTES),
    "HashlightShardsMissing": ({f"hashlight_coverage_ratio{{{GATEWAY}}}": "1x4 0.5x800"}, MINUTES),
    "HashlightReplicasSilent": (
        {f'hashlight_router_replicas{{{GATEWAY}, state="lost"}}': "0x4 1x800"},
        MINUTES,
    ),
    "HashlightMapOld": ({f"hashlight_router_map_age_seconds{{{GATEWAY}}}": "1x4 1+60x800"}, MINUTES),
    "HashlightErrors": ({'hashlight_requests_total{route="/v1/search", status="503"}': "0+100x800"}, MINUTES),
    "HashlightSlow": (
        {
            'hashlight_request_seconds_bucket{route="/v1/search", le="0.1"}': "0+5000x800",
            'hashlight_request_seconds_bucket{route="/v1/search", le="2.5"}': "0+6001x800",
        },
        MINUTES,
    ),
    "HashlightOverloaded": ({'hashlight_requests_total{route="/v1/search", status="429"}': "0+600x800"}, MINUTES),
    "HashlightVersionNotServed": ({f"hashlight_pending_attempts{{{GATEWAY}}}": "0x4 1+1x800"}, MINUTES),
    "HashlightVersionsApart": (
        {'hashlight_served_version{component="hashlight-gateway", instance="h"}': "3x800"},
        MINUTES,
    ),
    "HashlightCompactionFails": ({"hashlight_compaction_failures_total": "2+1x800"}, MINUTES),
    "HashlightWritesNotCommitted": ({f"hashlight_log_age_seconds{{{GATEWAY}}}": "5+60x800"}, MINUTES),
    "HashlightKeysStale": ({f"hashlight_keys_stale{{{GATEWAY}}}": "0x4 1x800"}, MINUTES),
    "HashlightKeysRefused": ({'hashlight_key_refusals_total{reason="unknown"}': "0+90x800"}, MINUTES),
    "HashlightMemoryGrows": ({f"process_resident_memory_bytes{{{GATEWAY}}}": "1000000000+1000000x800"}, 770),
    "HashlightDescriptorsRunOut": ({f"process_open_fds{{{GATEWAY}}}": "100x4 900x800"}, MINUTES),
}


def promtool():
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: Debian's package prometheus has it")
    return program


def run(*arguments):
    return subprocess.run([promtool(), *map(str, arguments)], capture_output=True, text=True, check=False)


def firing(rules, folder, scenarios, healthy=HEALTHY):
    """Run scenarios through rules by promtool: its answer, which is 0 if exactly the expected alerts fire.

    A scenario is, on top of series that are well, (series, minutes, names of the alerts expected then).
    """
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in {**healthy, **changed}.items()],
            "promql_expr_test": [
                {
                    "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": f"{minutes}m",
                    "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)],
                }
            ],
        }
        for changed, minutes, expected in scenarios
    ]
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    (folder / "tests.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests})
    )
    return run("test", "rules", folder / "tests.yaml")


def rules():
    return yaml.safe_load(ALERTS.read_text())


def alerts():
    return {rule["alert"]: rule for group in rules()["groups"] for rule in group["rules"]}


def test_the_rules_are_well_formed(tmp_path):
    done = run("check", "rules", ALERTS)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / "alerts.yaml"
    broken.write_text(ALERTS.read_text().replace("sum by (le, route)", "sum by le, route"))
    assert run("check", "rules", broken).returncode != 0


def test_every_alert_fires_for_its_fault_and_none_without(tmp_path):
    assert FAULTS.keys() == alerts().keys()
    scenarios = [(changed, minutes, [alert]) for alert, (changed, minutes) in FAULTS.items()]
    done = firing(rules(), tmp_path, [({}, MINUTES, []), ({}, 770, []), *scenarios])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", FAULTS)
def test_an_alert_that_never_fires_is_found(alert, tmp_path):
    broken = rules()
    [rule] = [rule for group in broken["groups"] for rule in group["rules"] if rule["alert"] == alert]
    rule["expr"] = f"({rule['expr']}) and vector(1) < 0"
    changed, minutes = FAULTS[alert]
    assert firing(broken, tmp_path, [(changed, minutes, [alert])]).returncode != 0


def sections(page):
    return re.findall(r"^## (Hashlight\w+)$", page, flags=re.MULTILINE)


def test_every_alert_has_its_section_in_the_runbook():
    found = alerts()
    assert sections(RUNBOOK.read_text()) == list(found)
    for name, rule in found.items():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].endswith(".")


def panels():
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queries():
    """Every query of the dashboard and the alerts: (where it stands, text)."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for name, rule in alerts().items():
        yield name, rule["expr"]
    for _, document in kubernetes():
        if document["kind"] == "HorizontalPodAutoscaler":
            yield "autoscaler", document["spec"]["metrics"][0]["pods"]["metric"]["name"]


def exported():
    """Every series that docs/metrics.md lists, which its own test compares with what the processes export."""
    return set(re.findall(r"`((?:hashlight|process|python)_\w+)", METRICS.read_text()))


def unknown(found, series):
    """Say which queries name a series that there is not; histograms are listed by their base."""
    bases = re.compile(r"_(bucket|sum|count)$")
    for where, text in found:
        for name in re.findall(r"\b(?:hashlight|process|python)_\w+", text):
            if name not in series and bases.sub("", name) not in series:
                yield f"{where}: {name}"


def test_queries_name_series_that_there_are():
    found = list(queries())
    assert len(found) > 25
    assert list(unknown(found, exported())) == []
    wrong = [("panel", "rate(hashlight_requests_sum[5m])"), ("alert", "process_fds > 3")]
    assert len(list(unknown(wrong, {"hashlight_requests_total"}))) == 2


def test_queries_parse(tmp_path):
    texts = [text for _, text in queries()]
    record = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(texts)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": record}]}))
    done = run("check", "rules", tmp_path / "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    record[3]["expr"] += ")"
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": record}]}))
    assert run("check", "rules", tmp_path / "rules.yaml").returncode != 0


def test_components_are_those_that_prometheus_is_told():
    named = {
        name
        for _, text in queries()
        for name in re.findall(r'component="([^"]+)"', text)
    }  # fmt: skip
    told = {
        rule["replacement"]
        for job in yaml.safe_load((DEPLOY / "compose" / "prometheus.yaml").read_text())["scrape_configs"]
        for rule in job["relabel_configs"]
    }
    labels = {
        document["metadata"]["labels"]["app.kubernetes.io/component"]
        for _, document in kubernetes()
        if document["kind"] == "Service"
    }
    [monitor] = [document for _, document in kubernetes() if document["kind"] == "ServiceMonitor"]
    [rule] = monitor["spec"]["endpoints"][0]["relabelings"]
    assert named == told == {rule["replacement"].replace("$1", label) for label in labels}


def test_panels_do_not_overlap_and_have_a_datasource_that_is_provisioned():
    [source] = yaml.safe_load((DEPLOY / "compose" / "grafana-datasource.yaml").read_text())["datasources"]
    cells = set()
    for panel in panels():
        assert panel["datasource"] == {"type": source["type"], "uid": source["uid"]}
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        cells |= own
    identities = [panel["id"] for panel in json.loads(DASHBOARD.read_text())["panels"]]
    assert len(set(identities)) == len(identities)
