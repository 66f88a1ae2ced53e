"""`lvlm-guard serve`: an OpenAI-compatible server round one model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvlm_guard import loading
from lvlm_guard.cli.engine_options import Engine, EngineName, EngineOptions, check_engine, read_engine_options
from lvlm_guard.cli.options import DEFAULT_STACK, Allow, Device, DeviceMap, Dtype, Executor, Model, Quantization
from lvlm_guard.errors import InputError
from lvlm_guard.extras import import_extra

if TYPE_CHECKING:
    from lvlm_guard.forward.executors.executor import ExecutorName
    from lvlm_guard.host.stack import Stack
    from lvlm_guard.serving.running import ListeningPlace
    from lvlm_guard.serving.settings import ServingLimits

PLAIN = "plain"
KEY_VARIABLE = "LVLM_GUARD_API_KEY"


def serve(
    model: Model,
    stack: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]STACK",
            help="A stack that requests may choose, the first by default; repeat for several.",
            show_default=DEFAULT_STACK,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What clients call the model.", show_default="the model's")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help=f"A key that clients must show; repeat for several. {KEY_VARIABLE} holds one that no process list shows.",
        ),
    ] = None,
    open_to_all: Annotated[
        bool, typer.Option("--open", help="Serve without a key on an address that others reach.")
    ] = False,
    allow: Allow = None,
    device: Device = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    quantize: Quantization = None,
    executor: Executor = "auto",
    remote_pictures: Annotated[
        bool, typer.Option("--remote-pictures", help="Fetch pictures from URLs on the open internet.")
    ] = False,
    max_batch: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 8,
    queue: Annotated[int, typer.Option(min=1, help="Requests that are open at once; more are told to wait.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 512,
    max_pictures: Annotated[int, typer.Option(min=1, help="Pictures of one request.")] = 8,
    max_megapixels: Annotated[float, typer.Option(min=0.01, help="All pictures of one request together.")] = 16,
    max_body_mib: Annotated[float, typer.Option(min=0.01, help="Size of one request.")] = 20,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds from a request to the end of its answer.")] = 300,
    drain: Annotated[float, typer.Option(min=0.1, help="Seconds that open requests get at the end.")] = 30,
    engine: Engine = "transformers",
    engine_options: EngineOptions = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Serve by replicas of Ray: local, auto, or the address of a cluster."),
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="How many, with --ray.")] = 1,
) -> None:
    """Serve a guarded model as OpenAI's chat completions, with a page to try it at /."""
    _check_extra()
    loading.quieten()
    from lvlm_guard.serving.running import ListeningPlace  # noqa: PLC0415 - slow to import
    from lvlm_guard.serving.settings import ServingLimits  # noqa: PLC0415 - as above

    place = ListeningPlace(host, port, _collect_keys(api_key), open_to_all)
    stacks = read_stacks(stack or [DEFAULT_STACK], allow)
    placement = loading.Placement(device_map, quantize)
    limits = ServingLimits(
        max_batch=max_batch, queue=queue, max_tokens=max_tokens, max_pictures=max_pictures,
        max_pixels=round(max_megapixels * 10**6), max_body=round(max_body_mib * 2**20), answer_seconds=deadline,
        drain_seconds=drain,
    )  # fmt: skip
    served = ServedModel(model, name or _name_model(model), device, dtype, placement, remote_pictures)
    check_engine(engine, engine_options, is_placed=device is not None or not placement.is_plain)
    _check_way(engine, ray, replicas)
    if engine == "vllm":
        _serve_vllm(served, stacks, place, limits, read_engine_options(engine_options))
    elif ray is not None:
        _serve_replicas(served, stacks, place, limits, executor, replicas, ray)
    else:
        _serve_transformers(served, stacks, place, limits, executor)


@dataclass(frozen=True)
class ServedModel:
    """The model of a server, as the command line names it.

    Args:
        model: A folder, a hub id or `testbed`.
        name: What clients call it.
        device: Where it runs, None for the default.
        dtype: In which dtype.
        placement: How it is spread and quantised.
        remote_pictures: Whether URLs of pictures are fetched.
    """

    model: str
    name: str
    device: str | None
    dtype: str
    placement: loading.Placement
    remote_pictures: bool


def _check_way(engine: EngineName, ray: str | None, replicas: int) -> None:
    """Refuse options of one way to serve beside another."""
    if replicas > 1 and ray is None:
        raise InputError("--replicas are those of Ray: add --ray local, or the address of a cluster.")
    if ray is not None and engine == "vllm":
        raise InputError(
            "--ray serves models of transformers; it has not been run with --engine vllm. Leave one of them out."
        )


def _serve_replicas(
    served: ServedModel,
    stacks: Mapping[str, Stack],
    place: ListeningPlace,
    limits: ServingLimits,
    executor: ExecutorName,
    replicas: int,
    address: str,
) -> None:
    from lvlm_guard.serving.ray_serve import ReplicaSource, run_replicas  # noqa: PLC0415 - slow to import

    source = ReplicaSource(
        served.model, served.device, served.dtype, served.placement, executor, served.name, stacks, place.keys, limits,
        served.remote_pictures,
    )  # fmt: skip
    run_replicas(source, place.host, place.port, replicas, address)


def _serve_transformers(
    served: ServedModel,
    stacks: Mapping[str, Stack],
    place: ListeningPlace,
    limits: ServingLimits,
    executor: ExecutorName,
) -> None:
    from lvlm_guard.fitting import check_chat_template  # noqa: PLC0415 - slow to import
    from lvlm_guard.guard import Guard  # noqa: PLC0415 - as above
    from lvlm_guard.request.picture_sources import PictureSources  # noqa: PLC0415 - as above
    from lvlm_guard.serving.running import run_server  # noqa: PLC0415 - as above

    loaded, processor = loading.load(served.model, served.device, served.dtype, served.placement)
    check_chat_template(processor)
    sources = PictureSources(local=False)
    guard = Guard(loaded, processor, None, executor=executor, without_image="plain", pictures=sources)
    run_server(guard, served.name, stacks, place, limits, remote_pictures=served.remote_pictures)


def _serve_vllm(
    served: ServedModel,
    stacks: Mapping[str, Stack],
    place: ListeningPlace,
    limits: ServingLimits,
    options: Mapping[str, Any],
) -> None:
    from lvlm_guard.engines.vllm import GuardedLLM  # noqa: PLC0415 - slow to import
    from lvlm_guard.engines.vllm.serving import VllmEngine  # noqa: PLC0415 - as above
    from lvlm_guard.fitting import check_chat_template  # noqa: PLC0415 - as above
    from lvlm_guard.serving.running import run_engine  # noqa: PLC0415 - as above

    images = {"limit_mm_per_prompt": {"image": limits.max_pictures}}
    llm = GuardedLLM(loading.resolve(served.model), stack=None, **{"dtype": served.dtype, **images, **options})
    started = VllmEngine(llm, stacks, limits)
    check_chat_template(started.processor)
    run_engine(
        lambda: started, started.processor, served.name, next(iter(stacks)), place, limits,
        remote_pictures=served.remote_pictures,
    )  # fmt: skip


def read_stacks(texts: list[str], allow: list[str] | None = None) -> dict[str, Stack]:
    """Return stacks by name, `plain` among them.

    Raises:
        InputError: Two have one name, or one cannot be built.
    """
    from lvlm_guard.host import stack as stacks  # noqa: PLC0415 - slow to import

    named: dict[str, Stack] = {}
    for text in texts:
        name, joint, value = text.partition("=")
        name, value = (name, value) if joint else (stacks.name_stack(text), text)
        if not name or name in named:
            raise InputError(f"--stack {text}: the name {name!r} is empty or taken. Write --stack NAME={value}.")
        named[name] = stacks.Stack.of(value, allow=allow or ())
    named.setdefault(PLAIN, stacks.Stack.of(None))
    if len(named[PLAIN]):
        raise InputError(f"--stack: {PLAIN!r} is the stack without strategies. Choose another name.")
    return named


def _collect_keys(keys: list[str] | None) -> tuple[str, ...]:
    variable = os.environ.get(KEY_VARIABLE)
    return (*(keys or ()), *([variable] if variable is not None else ()))


def _check_extra() -> None:
    """Refuse where the packages of the extra are missing, by its name."""
    for module in ("fastapi", "prometheus_client", "uvicorn"):
        import_extra(module, "serve")


def _name_model(model: str) -> str:
    """Return the last part of a path or hub id."""
    return model.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or model
