"""The manifests are valid for Kubernetes and Ray, and agree with the server and with each other."""

import ast
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from server.app import LAST_TOKEN_S, create_app
from server.settings import Settings
from tests.programs import require

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/kubernetes"
NATIVE = ("deployment", "service", "horizontalpodautoscaler", "poddisruptionbudget", "secret.example")
# The oldest version with preStop's sleep, and the newest one that the validator knows.
VERSIONS = ("1.30", "1.37")
# Fields of KubeRay's v1 types, copied from its source, because no package has them.
OBJECT, TEXT, NUMBER = {"type": "object"}, {"type": "string"}, {"type": "integer", "minimum": 0}


def fields(required: str, **properties: object) -> dict[str, Any]:
    closed = {"type": "object", "additionalProperties": False}
    return {**closed, "required": required.split(), "properties": properties}


PARAMETERS = {"type": "object", "additionalProperties": TEXT}
RAY_SERVICE = fields(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    metadata=OBJECT,
    spec=fields(
        "serveConfigV2 rayClusterConfig",
        serveConfigV2=TEXT,
        rayClusterConfig=fields(
            "headGroupSpec workerGroupSpecs rayVersion",
            rayVersion=TEXT,
            enableInTreeAutoscaling={"type": "boolean"},
            autoscalerOptions=fields("", idleTimeoutSeconds=NUMBER),
            headGroupSpec=fields("rayStartParams template", rayStartParams=PARAMETERS, template=OBJECT),
            workerGroupSpecs={
                "type": "array",
                "items": fields(
                    "groupName minReplicas maxReplicas rayStartParams template",
                    groupName=TEXT,
                    minReplicas=NUMBER,
                    maxReplicas=NUMBER,
                    rayStartParams=PARAMETERS,
                    template=OBJECT,
                ),
            },
        ),
    ),
)


def manifest(name: str, suffix: str = "yaml") -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.{suffix}").read_text())
    return found


def serve_config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
    return found


def ray_cluster() -> dict[str, Any]:
    found: dict[str, Any] = manifest("rayservice")["spec"]["rayClusterConfig"]
    return found


def ray_groups() -> list[dict[str, Any]]:
    cluster = ray_cluster()
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def plain_pod() -> dict[str, Any]:
    found: dict[str, Any] = manifest("deployment")["spec"]["template"]["spec"]
    return found


def pods() -> list[dict[str, Any]]:
    return [plain_pod(), *(group["template"]["spec"] for group in ray_groups())]


def variables(pod: dict[str, Any]) -> dict[str, Any]:
    return {variable["name"]: variable for variable in pod["containers"][0]["env"]}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NATIVE)
def test_native_kinds_are_valid(name: str, version: str) -> None:
    """Validation is strict: an unknown field is an error."""
    kubernetes_validate.validate(manifest(name), version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_pods_of_the_ray_cluster_are_valid(version: str) -> None:
    """Their templates are valid in a deployment."""
    for group in ray_groups():
        deployment = manifest("deployment")
        labels = deployment["spec"]["selector"]["matchLabels"]
        deployment["spec"]["template"] = {**group["template"], "metadata": {"labels": labels}}
        kubernetes_validate.validate(deployment, version, strict=True)


def test_the_ray_service_has_known_fields_only() -> None:
    """KubeRay would drop unknown fields silently."""
    jsonschema.validate(manifest("rayservice"), RAY_SERVICE)


def test_both_configurations_of_ray_serve_are_equal() -> None:
    """The manifest contains the file's configuration."""
    assert yaml.safe_load(manifest("rayservice")["spec"]["serveConfigV2"]) == serve_config()


def test_every_manifest_is_tested() -> None:
    """A new manifest needs a test, and kustomize's resources exist."""
    others = {"kustomization", "rayservice", "prometheus-adapter"}

    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*NATIVE, *others}
    assert set(manifest("kustomization")["resources"]) <= {f"{name}.yaml" for name in NATIVE}


def scale_arguments() -> set[str]:
    """The arguments that are not settings, read without importing Ray, which takes seconds."""
    tree = ast.parse((ROOT / "deploy/ray/app.py").read_text())
    (scale,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Scale")
    return {
        node.target.id for node in scale.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def test_arguments_are_documented() -> None:
    """The table has each argument."""
    table = (ROOT / "docs/scaling.md").read_text().split("| argument |")[1].split("\n\n")[0]
    names = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}

    assert names == scale_arguments() | {"queue_size"}


def test_variables_and_arguments_are_settings() -> None:
    """Names are not misspelt, and the server accepts the values."""
    given = {
        name.removeprefix("GRIFFIN_").lower(): variable.get("value", "of-the-secret")
        for pod in pods()
        for name, variable in variables(pod).items()
        if name.startswith("GRIFFIN_")
    }
    (application,) = serve_config()["applications"]
    arguments = {name: value for name, value in application["args"].items() if name not in scale_arguments()}

    assert given.keys() | arguments.keys() <= Settings.model_fields.keys()
    Settings(**given)
    Settings(**arguments)


def test_no_variable_of_a_service_is_taken_for_a_setting() -> None:
    """For a service named griffin, Kubernetes would set GRIFFIN_PORT to tcp://..."""
    assert all(pod["enableServiceLinks"] is False for pod in pods())


def test_no_secret_is_in_a_manifest() -> None:
    """Manifests only refer to keys, and the example's values are empty."""
    assert set(manifest("secret.example")["stringData"].values()) == {""}
    for pod in pods():
        for name in ("GRIFFIN_API_KEYS", "HF_TOKEN"):
            reference = variables(pod).get(name, {"valueFrom": {"secretKeyRef": {"name": "griffin"}}})
            assert "value" not in reference
            key = reference["valueFrom"]["secretKeyRef"]
            assert key["name"] == manifest("secret.example")["metadata"]["name"]
            assert key.get("key", "api-keys") in manifest("secret.example")["stringData"]


def test_probes_ask_what_the_server_answers() -> None:
    """They use the port that the server listens on. Loading or draining restarts no pod."""
    (container,) = plain_pod()["containers"]
    paths = {probe: container[probe]["httpGet"]["path"] for probe in container if probe.endswith("Probe")}
    (port,) = container["ports"]

    assert paths == {"startupProbe": "/ready", "readinessProbe": "/ready", "livenessProbe": "/health"}
    assert set(paths.values()) <= create_app(Settings()).openapi()["paths"].keys()
    assert port["containerPort"] == Settings().port
    assert {container[probe]["httpGet"]["port"] for probe in paths} == {port["name"]}
    assert manifest("service")["spec"]["ports"][0]["targetPort"] == port["name"]


def test_pods_outlive_their_drain() -> None:
    """Kubernetes kills a pod only after the drain timeout."""
    pod, settings = plain_pod(), Settings()
    before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = int(variables(pod)["GRIFFIN_DRAIN_TIMEOUT"]["value"])
    (worker,) = ray_cluster()["workerGroupSpecs"]
    ray_drain = int(variables(worker["template"]["spec"])["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]["value"])

    assert drain == settings.drain_timeout
    assert pod["terminationGracePeriodSeconds"] >= before + drain + 2 * LAST_TOKEN_S
    assert ray_drain >= serve_config()["applications"][0]["args"]["drain_timeout"] + 10
    assert worker["template"]["spec"]["terminationGracePeriodSeconds"] > ray_drain


def test_a_ray_worker_has_room_for_one_replica() -> None:
    """A worker has the GPU and cores of a replica, and the numbers of workers and replicas have the same limits."""
    (worker,) = ray_cluster()["workerGroupSpecs"]
    (application,) = serve_config()["applications"]
    (deployment,) = application["deployments"]
    limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]

    assert limits["nvidia.com/gpu"] == application["args"]["gpus"]
    assert int(limits["cpu"]) == application["args"]["cpus"]
    assert worker["minReplicas"] == deployment["autoscaling_config"]["min_replicas"]
    assert worker["maxReplicas"] == deployment["autoscaling_config"]["max_replicas"]


def test_the_versions_are_those_that_are_installed() -> None:
    """Ray's version, and ours in the names of images."""
    project = (ROOT / "pyproject.toml").read_text()
    ours = re.search(r'^version = "(.*)"$', project, re.MULTILINE)
    assert ours
    images = {pod["containers"][0]["image"] for pod in pods()}

    assert f"ray=={ray_cluster()['rayVersion']}\n" in (ROOT / "deploy/constraints.txt").read_text()
    assert images == {f"griffin-server:{ours[1]}", f"griffin-server:{ours[1]}-ray"}
    assert manifest("kustomization")["images"] == [{"name": "griffin-server", "newTag": ours[1]}]


def test_everything_selects_the_pods_of_the_deployment() -> None:
    """Pods of a Ray cluster beside it are not selected."""
    labels = manifest("deployment")["spec"]["template"]["metadata"]["labels"]
    ray = {key: value for group in ray_groups() for key, value in group["template"].get("metadata", {}).items()}

    assert manifest("deployment")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("service")["spec"]["selector"] == labels
    assert manifest("poddisruptionbudget")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("horizontalpodautoscaler")["spec"]["scaleTargetRef"]["name"] == "griffin"
    assert not labels.items() <= ray["labels"].items()


def test_pods_are_scaled_by_an_existing_metric() -> None:
    """The autoscaler uses the adapter's metric, which is made from metrics of the server."""
    (metric,) = manifest("horizontalpodautoscaler")["spec"]["metrics"]
    (rule,) = manifest("prometheus-adapter")["rules"]["custom"]
    exposed = create_app(Settings()).state.service.metrics.expose().decode()
    used = set(re.findall(r"griffin_\w+", rule["metricsQuery"] + rule["seriesQuery"]))

    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert used
    assert all(f"# HELP {name} " in exposed for name in used)


def test_prometheus_takes_scrapes_and_queries(tmp_path: Path) -> None:
    """promtool accepts the configuration and the adapter's query."""
    promtool = require("promtool")
    (rule,) = manifest("prometheus-adapter")["rules"]["custom"]
    query = (
        rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="n",pod=~"a|b"')
    )
    rules = tmp_path / "rules.yml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "n", "rules": [{"record": "n:n", "expr": query}]}]}))

    scrapes = manifest("prometheus", "yml")
    # Debian's promtool has no support for Kubernetes.
    del scrapes["scrape_configs"][0]["kubernetes_sd_configs"]
    config = tmp_path / "prometheus.yml"
    config.write_text(yaml.safe_dump(scrapes))

    for command in (["config", "--syntax-only", config], ["rules", rules]):
        done = subprocess.run([promtool, "check", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_finds_the_pods_by_name_and_port() -> None:
    """The deployment is scraped at its API's port, Ray's workers at their metrics port."""
    (scrape,) = manifest("prometheus", "yml")["scrape_configs"]
    wanted = re.compile(scrape["relabel_configs"][0]["regex"])
    (worker,) = ray_cluster()["workerGroupSpecs"]
    for template in (manifest("deployment")["spec"]["template"], worker["template"]):
        name = template["metadata"]["labels"]["app.kubernetes.io/name"]
        ports = [port["name"] for port in template["spec"]["containers"][0]["ports"]]
        assert sum(bool(wanted.fullmatch(f"{name};{port}")) for port in ports) == 1
