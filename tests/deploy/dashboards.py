"""The dashboards as Grafana reads them, and their queries as Grafana sends them to Prometheus."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
# Characters that Grafana escapes in a variable's values, because they are used as a regular expression.
SPECIAL = re.compile(r"[\\^$*+?.()|\[\]{}]")


@dataclass(frozen=True)
class Query:
    """A target of a panel, or an annotation. ``instant``: a query at one time, else over a range."""

    where: str
    expression: str
    instant: bool

    def filled(self, rate_interval: str, range: str, **variables: list[str]) -> str:
        """The expression with the variables of Grafana and of the dashboard filled in. No values mean All."""
        text = self.expression.replace("$__rate_interval", rate_interval).replace("$__range", range)
        for name, values in variables.items():
            escaped = [SPECIAL.sub(lambda found: rf"\\{found[0]}", value) for value in values]
            joined = escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"
            text = text.replace(f"${name}", joined if values else ".*")
        assert "$" not in text, f"{self.where}: unknown variable in {text}"
        return text


def read(file: Path) -> dict[str, Any]:
    dashboard = json.loads(file.read_text())
    assert isinstance(dashboard, dict)
    return dashboard


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """All panels except rows, which are only headings."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def panel_queries() -> Iterator[Query]:
    for dashboard in map(read, FILES):
        for panel in panels(dashboard):
            for target in panel["targets"]:
                where = f"{dashboard['title']}: {panel['title']} {target['refId']}"
                yield Query(where, target["expr"], target.get("instant", False))


def annotation_queries() -> Iterator[Query]:
    for dashboard in map(read, FILES):
        for annotation in dashboard["annotations"]["list"]:
            yield Query(f"{dashboard['title']}: {annotation['name']}", annotation["expr"], False)
