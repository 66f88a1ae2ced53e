"""A server as replicas of Ray Serve: each is the server of one process, with a model of its own, behind Ray's proxy."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from lvlm_guard.bulk.ray_actors import LOCAL, connect
from lvlm_guard.errors import InputError, describe_error, shorten
from lvlm_guard.host.stack import Stack
from lvlm_guard.loading import Placement
from lvlm_guard.serving.settings import ServingLimits
from lvlm_guard.serving.structured_logs import log_event, structured_logs

NAME = "lvlm-guard"
HEALTH_SECONDS = 5.0
START_SECONDS = 600.0
"""In which a proxy and the replicas have to stand. Ray itself waits a minute for its proxy, which goes on starting after that."""
LOOK_SECONDS = 0.5
LONGEST_REASON = 300
MORE_CALLS = 16
"""Calls of a replica beside its open requests: health, page, metrics, and clients that are told to come back."""


@dataclass(frozen=True)
class ReplicaSource:
    """All that a replica needs, as plain values that travel to its process.

    Args:
        model: As `lvlm_guard.loading.load` takes it; it must be there on every machine.
        device: As above.
        dtype: As above.
        placement: As above.
        executor: Of the guard.
        name: What clients call the model.
        stacks: What requests may choose, by name; the first is the default.
        keys: API keys.
        limits: Of each replica.
        remote_pictures: Whether URLs of pictures are fetched.
    """

    model: str
    device: str | None
    dtype: str
    placement: Placement
    executor: Any
    name: str
    stacks: Mapping[str, Stack]
    keys: tuple[str, ...]
    limits: ServingLimits
    remote_pictures: bool = False

    def build_app(self) -> FastAPI:
        """Load the model, and return the server round it; `state.service` is what answers."""
        from lvlm_guard import loading  # noqa: PLC0415 - where the replica is
        from lvlm_guard.fitting import check_chat_template  # noqa: PLC0415 - as above
        from lvlm_guard.guard import Guard  # noqa: PLC0415 - as above
        from lvlm_guard.request.picture_sources import PictureSources  # noqa: PLC0415 - as above
        from lvlm_guard.serving.app import build_app  # noqa: PLC0415 - as above
        from lvlm_guard.serving.running import build_service  # noqa: PLC0415 - as above

        model, processor = loading.load(self.model, self.device, self.dtype, self.placement)
        check_chat_template(processor)
        sources = PictureSources(local=False)
        guard = Guard(model, processor, None, executor=self.executor, without_image="plain", pictures=sources)
        service = build_service(
            guard, self.name, self.stacks, self.keys, self.limits, remote_pictures=self.remote_pictures
        )
        app = build_app(service)
        app.state.service = service
        return app


class Replica:
    """What Ray asks of a replica besides its answers; Ray adds `app`."""

    app: FastAPI

    def check_health(self) -> None:
        """Let Ray replace a replica whose worker has ended, or is stuck in a batch.

        Raises:
            RuntimeError: It has, or is.
        """
        if not self.app.state.service.reader.engine.is_alive:
            raise RuntimeError("The worker that owns the model has ended, or is stuck in a batch.")


def bind_replicas(serve: Any, source: ReplicaSource, replicas: int, gpus: float) -> Any:
    """Return the application of Ray Serve.

    Args:
        serve: `ray.serve`.
        source: Of each replica.
        replicas: How many.
        gpus: GPUs of each.
    """

    def build() -> FastAPI:
        return source.build_app()

    deployment = serve.deployment(
        name=NAME,
        num_replicas=replicas,
        max_ongoing_requests=source.limits.queue + MORE_CALLS,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=source.limits.drain_seconds,
    )
    return deployment(serve.ingress(build)(Replica)).bind()


def run_replicas(source: ReplicaSource, host: str, port: int, replicas: int, address: str = LOCAL) -> None:
    """Serve until the process is told to stop; open requests are answered first.

    Args:
        source: Of each replica.
        host: Where Ray's proxy listens.
        port: As above; 0 is refused, because Ray would not say which it took.
        replicas: How many.
        address: Of the cluster; `local` begins one on this machine.

    Raises:
        InputError: Ray is not installed, cannot be reached, or cannot start the replicas.
    """
    if port == 0:
        raise InputError("--port 0 does not go with --ray, which does not say what port it took. Name one.")
    ray = connect(address)
    from ray import serve  # noqa: PLC0415 - of the extra, behind the check of it

    gpus = float(source.device != "cpu" and bool(ray.cluster_resources().get("GPU")))
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    with structured_logs():
        try:
            with _explained(ray):
                with suppress(TimeoutError):
                    serve.start(http_options={"host": host, "port": port})
                with suppress(TimeoutError):
                    serve.run(bind_replicas(serve, source, replicas, gpus), name=NAME, route_prefix="/")
                wait_until_serving(serve, stop)
            if not stop.is_set():
                log_event("listening", host=host, port=port, model=source.name, replicas=replicas)
            stop.wait()
        finally:
            serve.shutdown()
            ray.shutdown()
            for number, handler in before.items():
                signal.signal(number, handler)
            log_event("stopped")


def wait_until_serving(serve: Any, stop: threading.Event, seconds: float = START_SECONDS) -> None:
    """Wait until a proxy and all replicas stand, or `stop` is set.

    Args:
        serve: `ray.serve`.
        stop: Ends the wait.
        seconds: The longest wait.

    Raises:
        RuntimeError: The replicas cannot start.
        TimeoutError: It takes longer.
    """
    until = time.monotonic() + seconds
    while not _is_serving(status := serve.status()):
        if time.monotonic() > until:
            states = ", ".join(str(getattr(state, "value", state)) for state in status.proxies.values())
            raise TimeoutError(
                f"after {seconds:g} seconds its proxies are {states or 'missing'}, and not all replicas stand"
            )
        if stop.wait(LOOK_SECONDS):
            return


def _is_serving(status: Any) -> bool:
    application = status.applications.get(NAME)
    if application is not None and application.status == "DEPLOY_FAILED":
        raise RuntimeError(application.message)
    stands = application is not None and application.status == "RUNNING"
    return stands and any(proxy == "HEALTHY" for proxy in status.proxies.values())


@contextmanager
def _explained(ray: Any) -> Iterator[None]:
    """Raise what Ray raises while it starts as an error that names the way out."""
    try:
        yield
    except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
        reason = shorten(describe_error(error).split("\n")[0], LONGEST_REASON)
        raise InputError(
            f"Ray could not start the replicas ({reason}). Its logs say more; try without --ray."
        ) from error
