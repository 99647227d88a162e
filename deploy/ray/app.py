"""The server as a Ray Serve deployment, one replica per GPU: ``serve run deploy.ray.app:application device=cpu``.

Arguments are the fields of ``Scale``, and all settings of the server by their own names.
"""

import asyncio
import logging
import re
from collections.abc import Mapping
from typing import Annotated, Any

import click
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, start_http_server
from pydantic import BaseModel, Field, ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.util import get_node_ip_address
from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import log
from server.commandline.reading import fault
from server.settings import Settings, SettingsInvalid, names_no_key, settings_with, unknown_variables

logger = logging.getLogger("griffin")

REPLICA, REQUEST_ID = "x-griffin-replica", "x-request-id"
# Settings that cannot be arguments. The proxies listen, not the replicas, and Ray's dashboard shows all arguments.
ELSEWHERE = {
    "host": "the proxies listen; set http_options.host in the config file",
    "port": "the proxies listen; set http_options.port in the config file",
    "api_keys": "arguments are shown on Ray's dashboard; set GRIFFIN_API_KEYS where Ray is started",
}

# A replica is busy at this number of running and waiting requests per worker. If a worker takes one request at a time,
# and all have about the same length, it has two on average when it is busy three quarters of the time.
TARGET_PER_WORKER = 2
# A replica has the next request ready when a worker is done. All other requests wait at the proxies, up to MOST_QUEUED
# at each. From there any replica can take the next request, and no request is lost when a replica ends.
QUEUE_SIZE, MOST_QUEUED = 1, 64
# A new replica takes long to load a model, so scale up fast and scale down slowly.
UPSCALE_DELAY_S, DOWNSCALE_DELAY_S = 10, 600
# Seconds after the drain timeout, in which Ray notices that all requests are done.
NOTICE_S = 10
# The number of ports for the metrics of a node's replicas. It is larger than the number of GPUs in a node.
METRICS_PORTS = 64


class Scale(BaseModel):
    """The number of replicas, and the resources of each."""

    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1
    # None means one, or 0 if the device is the CPU.
    gpus: Annotated[float | None, Field(ge=0)] = None
    # Also the number of threads: Ray sets OMP_NUM_THREADS to it.
    cpus: Annotated[int, Field(ge=1)] = 1
    # The first replica of a node takes this port, the next one the port after it. 0 means no metrics port.
    metrics_port: Annotated[int, Field(ge=0, le=65535 - METRICS_PORTS)] = 9400


def application(arguments: dict[str, Any]) -> Application:
    """The application for Ray Serve; arguments may be strings.

    Raises:
        click.UsageError: names the argument that is wrong.
    """
    ours = {name: value for name, value in arguments.items() if name in Scale.model_fields}
    settings_given = {"queue_size": QUEUE_SIZE} | {name: arguments[name] for name in arguments if name not in ours}
    for name, instead in ELSEWHERE.items():
        if name in settings_given:
            raise click.UsageError(f"{name} cannot be an argument: {instead}")
    try:
        scale, settings = Scale.model_validate(ours), settings_with(**settings_given)
    except SettingsInvalid as error:
        raise click.UsageError(str(error)) from None
    except ValidationError as error:
        raise click.UsageError(": ".join(fault(error))) from None
    if scale.max_replicas < scale.min_replicas:
        raise click.UsageError(f"max_replicas: {scale.max_replicas} is less than min_replicas, {scale.min_replicas}")
    deployment = serve.deployment(
        name="griffin",
        ray_actor_options={"num_gpus": _gpus(scale, settings), "num_cpus": scale.cpus},
        max_ongoing_requests=settings.all_workers + settings.queue_size,
        max_queued_requests=MOST_QUEUED,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        autoscaling_config=AutoscalingConfig(
            min_replicas=scale.min_replicas,
            max_replicas=scale.max_replicas,
            target_ongoing_requests=TARGET_PER_WORKER * settings.all_workers,
            upscale_delay_s=UPSCALE_DELAY_S,
            downscale_delay_s=DOWNSCALE_DELAY_S,
        ),
        graceful_shutdown_timeout_s=settings.drain_timeout + NOTICE_S,
    )(Replica)
    return deployment.bind(settings_given, scale.metrics_port)


def _gpus(scale: Scale, settings: Settings) -> float:
    if scale.gpus is not None:
        return scale.gpus
    names = re.split("[,+]", settings.devices) if settings.devices else [settings.device]
    return 0 if names == ["cpu"] else len(names)


@serve.ingress()
class Replica:
    """One server: a model on its own device, its own queue and its own metrics. Ray's proxies are in front of it."""

    def __init__(self, settings: Mapping[str, Any], metrics_port: int) -> None:
        self._settings, self._metrics_port = settings_with(**settings), metrics_port
        self._decided = asyncio.Event()
        log.configure(self._settings.log_level, self._settings.log_format)
        if names_no_key(self._settings):
            logger.warning("api_keys is empty: anyone who reaches this cluster may use it")
        for name in unknown_variables():
            logger.warning("%s is not a setting and is ignored; see python -m server --help", name)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray, which then runs the app's lifespan."""
        # Imported here, because it imports torch, which a process that only describes the application does not need.
        from server.app import create_app

        app = create_app(
            self._settings,
            on_ready=lambda loaded: self._decided.set(),
            on_failure=lambda reason: self._decided.set(),
        )
        self._service = app.state.service
        self._expose(self._service.metrics.registry)
        app.add_middleware(Ingress, replica=serve.get_replica_context().replica_id.unique_id)
        return app

    async def check_health(self) -> None:
        """Called by Ray. The first call returns once the model is loaded; then the replica gets requests.

        Raises:
            RuntimeError: the model cannot be loaded.
            ApiError: the server is not ready; after three times in a row, Ray replaces the replica.
        """
        await self._decided.wait()
        if self._service.failure is not None:
            raise RuntimeError(self._service.failure)
        self._service.require_ready()

    def _expose(self, registry: CollectorRegistry) -> None:
        """Serve metrics to Prometheus, on the first free port for this replica."""
        if not self._metrics_port or not self._settings.open_operations:
            return
        address: str = get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray's own has no types
        for port in range(self._metrics_port, self._metrics_port + METRICS_PORTS):
            try:
                start_http_server(port, address, registry)
            except OSError:
                continue
            logger.info("metrics are at http://%s:%d/metrics", address, port)
            return
        logger.warning(
            "metrics_port: %d and the %d after it are in use; this replica serves no metrics",
            self._metrics_port,
            METRICS_PORTS,
        )


class Ingress:
    """The changes for a server after Ray's proxies: a header with the replica, one request id, and no ``/metrics``."""

    def __init__(self, app: ASGIApp, replica: str) -> None:
        self._app, self._replica = app, replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[REPLICA] = self._replica
                # The proxy has given the request its id and adds it to the answer itself.
                del headers[REQUEST_ID]
            await send(message)

        if scope["type"] == "http" and scope["path"] == "/metrics":
            # Each request would reach another replica, so the metrics would be useless.
            message = "each replica has its own metrics, on its own port; the replica's log names the port"
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": "not_found"}
            await JSONResponse({"error": error}, 404)(scope, receive, named)
        else:
            await self._app(scope, receive, named)
