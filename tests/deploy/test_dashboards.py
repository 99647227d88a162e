"""The dashboards hang together: what Grafana would show wrongly, or not at all, without an error."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.metrics import OTHER, SPARSITIES, Metrics, sparsity_label
from tests.deploy.dashboards import FILES, GRAFANA, annotation_queries, panel_queries, panels, read

ROOT = Path(__file__).parents[2]
# Names of groups of rules.
GROUPS = {"griffin_latency", "griffin_quality", "griffin_alerts"}
BUILT_IN = {"__rate_interval", "__range", "__all"}


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read(request.param)


def test_there_are_two() -> None:
    """Each with an address of its own."""
    assert [read(file)["title"] for file in FILES] == ["GRIFFIN", "Service"]
    assert len({read(file)["uid"] for file in FILES}) == 2


def test_every_panel_says_what_it_shows(dashboard: dict[str, Any]) -> None:
    """Title, description and unit, and the datasource by its variable."""
    for panel in panels(dashboard):
        assert panel["title"], panel
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0, panel["title"]
    assert len({panel["title"] for panel in panels(dashboard)}) == len(panels(dashboard))


def test_panels_have_a_place_each(dashboard: dict[str, Any]) -> None:
    """Unique ids, inside the 24 columns, none over another."""
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


def test_variables_are_defined_and_used(dashboard: dict[str, Any]) -> None:
    """A name that is misspelt would be sent to Prometheus as it is."""
    defined = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps([dashboard["panels"], dashboard["annotations"]])))

    assert defined == {"datasource", "model", "instance"}
    assert used - BUILT_IN == defined


def test_the_datasource_is_the_provisioned_one(dashboard: dict[str, Any]) -> None:
    """The variable's first value is the uid that provisioning gives, so that the first look has data."""
    provisioned = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    variable = next(v for v in dashboard["templating"]["list"] if v["name"] == "datasource")
    scrape = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]

    assert [source["uid"] for source in provisioned] == [variable["current"]["value"]] == ["prometheus"]
    # $__rate_interval is made of it.
    assert provisioned[0]["jsonData"]["timeInterval"] == scrape


def test_a_sparsity_has_one_colour(dashboard: dict[str, Any]) -> None:
    """In every panel that draws one line for each, and all of them have it."""
    expected = {*map(sparsity_label, SPARSITIES), OTHER}
    colours: dict[str, set[str]] = {}
    for panel in panels(dashboard):
        overrides = {o["matcher"]["options"]: o["properties"] for o in panel["fieldConfig"]["overrides"]}
        if any(target["legendFormat"] == "{{sparsity}}" for target in panel["targets"]):
            assert expected <= set(overrides), panel["title"]
            for sparsity in expected:
                colours.setdefault(sparsity, set()).add(overrides[sparsity][0]["value"]["fixedColor"])

    assert set(colours) == expected
    assert all(len(found) == 1 for found in colours.values()), colours
    assert len(set.union(*colours.values())) == len(expected)


def test_the_dashboards_lead_to_each_other(dashboard: dict[str, Any]) -> None:
    """With the same time range and variables."""
    (link,) = dashboard["links"]
    assert link["type"] == "dashboards"
    assert link["keepTime"]
    assert link["includeVars"]
    assert all(set(link["tags"]) <= set(read(file)["tags"]) for file in FILES)


def test_every_metric_exists_and_is_looked_at() -> None:
    """What dashboards and rules name is what the server exports, and the other way round."""
    exported = {family.name for family in Metrics().registry.collect()}
    variables = [v.get("definition", "") for file in FILES for v in read(file)["templating"]["list"]]
    rules = [file.read_text() for file in (ROOT / "deploy/prometheus/rules").glob("*.yml")]
    texts = [*(query.expression for query in (*panel_queries(), *annotation_queries())), *variables, *rules]
    named = {name for text in texts for name in re.findall(r"(?<!:)\b(?:griffin|process)_\w+", text)}
    families = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in named} - GROUPS

    assert families - exported == set()
    ours = {name for name in exported if name.startswith("griffin_")}
    # Of the last request only; the panels have all of them.
    assert ours - families == {"griffin_active_parameters", "griffin_bytes_per_token"}
