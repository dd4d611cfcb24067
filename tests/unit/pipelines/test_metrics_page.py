"""What docs, dashboards and alerts say of figures is what the code registers, in both directions."""

import json
import re
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from pipelines.gateway import metrics as gateway
from pipelines.reward_model import metrics as scorer
from schemas import traces
from schemas.objectives import ObjectiveConfig
from trainers.federation.figures import Figures
from trainers.metrics import FIGURES, Gauges
from trainers.objective import Objective
from trainers.returns import MOMENTS
from transforms import metrics as rollout
from transforms.feedback import metrics as feedback
from transforms.generation.worker.state import Metrics

ROOT = Path(__file__).parents[3]
DASHBOARDS = sorted((ROOT / "deploy/grafana").glob("*.json"))
RULES = ROOT / "deploy/prometheus/rules.yml"
ROW = re.compile(r"^\| `(asyncflow_\w+)` \| (\w+) \|(?: ?((?:`\w+`(?:, )?)*) ?\|)?", re.M)
NAME = re.compile(r"\b(?:asyncflow_\w+|vllm:\w+)")
RUNS = sorted((ROOT / "docs/benchmarks/gpu/results").rglob("metrics.jsonl"))


def registered():
    """Every figure by the name that it is served under, with type and labels."""
    holders = (rollout, feedback, gateway, scorer, traces, Metrics(CollectorRegistry()), Gauges(0), Figures())
    metrics = [each for holder in holders for each in vars(holder).values() if isinstance(each, MetricWrapperBase)]
    found = {name_of(each): (each._type, tuple(each._labelnames)) for each in metrics}
    return found | {f"asyncflow_learner_{name}": ("gauge", ()) for name in FIGURES}


def name_of(metric):
    return metric._name + ("_total" if metric._type == "counter" else "")


def served():
    """Names of samples: what a query can ask for."""
    names = set()
    for name, (kind, _) in registered().items():
        names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names


def served_by_vllm():
    """Without importing it, which takes seconds."""
    source = Path(find_spec("vllm").origin).parent / "v1/metrics/loggers.py"
    names = set(re.findall(r'"(vllm:\w+)"', source.read_text()))
    return names | {f"{name}_total" for name in names}


def unknown(expressions):
    known = served() | served_by_vllm()
    return sorted({name for each in expressions for name in NAME.findall(each)} - known)


def test_the_page_has_what_is_registered_and_nothing_else():
    page = (ROOT / "docs/metrics.md").read_text()
    rows = {name: (kind, tuple(re.findall(r"`(\w+)`", labels or ""))) for name, kind, labels in ROW.findall(page)}
    assert rows == registered()
    assert set(re.findall(r"vllm:\w+", page)) <= served_by_vllm()


def test_what_a_step_has_stands_in_the_table():
    ways = product(("grpo", "ppo"), (0.0, 0.1), (0.0, 0.1), ("none", "truncated_token"))
    for name, kl, entropy, correction in ways:
        config = ObjectiveConfig(name=name, kl_coefficient=kl, entropy_coefficient=entropy, correction=correction)
        assert set(Objective(config).figures) - set(MOMENTS) <= FIGURES.keys()
    lines = [json.loads(line) for run in RUNS for line in run.read_text().splitlines()]
    assert len(lines) > 50
    assert {name for line in lines for name in line} - {"at"} <= FIGURES.keys()


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_asks_for_what_is_served(file):
    dashboard = json.loads(file.read_text())
    panels = dashboard["panels"]
    assert dashboard["uid"] == f"asyncflow-{file.stem}"
    assert dashboard["templating"]["list"][0]["name"] == "datasource"
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert {"title", "type", "targets", "gridPos", "fieldConfig"} <= panel.keys()
        assert panel["datasource"]["uid"] == "${datasource}"
    assert not unknown(target["expr"] for panel in panels for target in panel["targets"])
    assert all(NAME.search(target["expr"]) for panel in panels for target in panel["targets"])
    assert not overlaps([panel["gridPos"] for panel in panels])


def overlaps(places):
    cells = [
        (x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
    ]
    return len(cells) != len(set(cells)) or max(x for x, _ in cells) >= 24


def test_there_is_a_dashboard_for_each_part():
    assert [file.stem for file in DASHBOARDS] == ["feedback", "generation", "learner", "overview"]


def test_alerts_ask_for_what_is_served_and_say_what_to_do():
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) > 10
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert {"summary", "action"} == rule["annotations"].keys()
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
        assert rule["expr"].count("(") == rule["expr"].count(")")
        for page in re.findall(r"docs/[\w-]+\.md", rule["annotations"]["action"]):
            assert (ROOT / page).exists()
    assert not unknown(rule["expr"] for rule in rules)


def test_prometheus_scrapes_every_process_that_has_an_endpoint():
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    jobs = {config["job_name"].removeprefix("asyncflow-") for config in scraped["scrape_configs"]}
    assert jobs == {"worker", "rollout", "learner", "join-feedback", "gateway", "federate"}
    assert scraped["rule_files"] == [RULES.name]


def test_a_name_that_nobody_serves_is_found():
    assert unknown(["rate(asyncflow_write_groups_total[1m]) + asyncflow_learner_lost + vllm:nothing"]) == [
        "asyncflow_learner_lost",
        "vllm:nothing",
    ]
