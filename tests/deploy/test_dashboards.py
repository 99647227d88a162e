"""The dashboards are consistent: faults that Grafana would show without an error."""

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
# Names of rule groups, which look like metrics.
GROUPS = {"griffin_latency", "griffin_quality", "griffin_alerts"}
BUILT_IN = {"__rate_interval", "__range", "__all"}


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read(request.param)


def test_there_are_two_dashboards() -> None:
    """Each has its own uid."""
    assert [read(file)["title"] for file in FILES] == ["GRIFFIN", "Service"]
    assert len({read(file)["uid"] for file in FILES}) == 2


def test_every_panel_says_what_it_shows(dashboard: dict[str, Any]) -> None:
    """Each panel has a title, a description, a unit, and the datasource variable."""
    for panel in panels(dashboard):
        assert panel["title"], panel
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0, panel["title"]
    assert len({panel["title"] for panel in panels(dashboard)}) == len(panels(dashboard))


def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    """Ids are unique, and panels lie inside the 24 columns without overlap."""
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


def test_variables_are_defined_and_used(dashboard: dict[str, Any]) -> None:
    """Grafana would send a misspelt variable to Prometheus as it is."""
    defined = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps([dashboard["panels"], dashboard["annotations"]])))

    assert defined == {"datasource", "model", "instance"}
    assert used - BUILT_IN == defined


def test_the_datasource_is_the_provisioned_one(dashboard: dict[str, Any]) -> None:
    """The variable's default is the provisioned uid, so that the dashboard has data when it is opened."""
    provisioned = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    variable = next(v for v in dashboard["templating"]["list"] if v["name"] == "datasource")
    scrape = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]

    assert [source["uid"] for source in provisioned] == [variable["current"]["value"]] == ["prometheus"]
    # Grafana computes $__rate_interval from it.
    assert provisioned[0]["jsonData"]["timeInterval"] == scrape


def test_a_sparsity_has_one_colour(dashboard: dict[str, Any]) -> None:
    """All panels with one line for each sparsity have the same colours for all sparsities."""
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


def test_the_dashboards_link_to_each_other(dashboard: dict[str, Any]) -> None:
    """The link keeps time range and variables."""
    (link,) = dashboard["links"]
    assert link["type"] == "dashboards"
    assert link["keepTime"]
    assert link["includeVars"]
    assert all(set(link["tags"]) <= set(read(file)["tags"]) for file in FILES)


def test_every_metric_exists_and_is_used() -> None:
    """Dashboards and rules use exactly the metrics that the server exports."""
    exported = {family.name for family in Metrics().registry.collect()}
    variables = [v.get("definition", "") for file in FILES for v in read(file)["templating"]["list"]]
    rules = [file.read_text() for file in (ROOT / "deploy/prometheus/rules").glob("*.yml")]
    texts = [*(query.expression for query in (*panel_queries(), *annotation_queries())), *variables, *rules]
    named = {name for text in texts for name in re.findall(r"(?<!:)\b(?:griffin|process)_\w+", text)}
    families = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in named} - GROUPS

    assert families - exported == set()
    ours = {name for name in exported if name.startswith("griffin_")}
    # These two are about the last request only; panels show all requests.
    assert ours - families == {"griffin_active_parameters", "griffin_bytes_per_token"}
