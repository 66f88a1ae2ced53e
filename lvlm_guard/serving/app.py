"""The routes of a server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from lvlm_guard import __version__
from lvlm_guard.serving.api_errors import ApiError
from lvlm_guard.serving.chat_request import ChatRequest
from lvlm_guard.serving.chat_service import ChatService, write_error
from lvlm_guard.serving.structured_logs import log_failure

PAGE = Path(__file__).parent / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""The page loads nothing from elsewhere, and runs nothing that a picture, a question or an answer could bring."""
PAGE_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
ERRORS = (400, 401, 404, 408, 413, 415, 422, 429, 500, 503, 504)


class ErrorDetail(BaseModel):
    """What went wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


def build_app(service: ChatService, is_draining: Callable[[], bool] = lambda: False) -> FastAPI:
    """Return the server.

    Args:
        service: Answers requests.
        is_draining: Whether the server was told to stop, so that no one should send it more.
    """

    @asynccontextmanager
    async def stop_engine(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.reader.engine.stop()

    app = FastAPI(title="lvlm-guard", version=__version__, docs_url=None, redoc_url=None, lifespan=stop_engine)
    _add_chat(app, service)
    _add_state(app, service, is_draining)
    _add_page(app)
    _add_errors(app)
    app.openapi = lambda: _describe(app, service)  # type: ignore[method-assign]
    return app


def _add_chat(app: FastAPI, service: ChatService) -> None:
    started = int(time.time())
    body = {"required": True, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}}}
    errors: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in ERRORS}
    event = {"type": "object", "properties": {"data": {"type": "string"}}}
    answers = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": event}}
    responses = {**errors, 200: {"description": "The answer, whole or as it comes.", "content": answers}}

    @app.post("/v1/chat/completions", openapi_extra={"requestBody": body}, responses=responses, response_model=None)
    async def complete_chat(request: Request) -> Response:
        """Answer a conversation, as OpenAI's API does; `guard` chooses a stack and asks for its report."""
        return await service.complete(request)

    @app.get("/v1/models", responses={401: errors[401]})
    async def list_models(request: Request) -> dict[str, Any]:
        """List the model: by itself with the default stack, and once with each stack."""
        service.identify(request)
        reader = service.reader
        names = reader.names
        stacks = {name: list(strategies) for name, strategies in reader.engine.stacks.items()}
        entries: list[dict[str, Any]] = [
            {"id": name, "object": "model", "created": started, "owned_by": "lvlm-guard"} for name in names
        ]
        entries[0]["guard"] = {"stacks": stacks, "default": reader.default_stack}
        return {"object": "list", "data": entries}


def _add_state(app: FastAPI, service: ChatService, is_draining: Callable[[], bool]) -> None:
    @app.get("/health", responses={503: {"model": ErrorBody}})
    def tell_health() -> dict[str, str]:
        """Say whether the process works; a server that does not should be restarted."""
        if not service.reader.engine.is_alive and not is_draining():
            raise ApiError(503, "The worker that owns the model has ended, or is stuck in a batch.", "unhealthy")
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"model": ErrorBody}})
    def tell_readiness() -> dict[str, str]:
        """Say whether requests should be sent here."""
        if is_draining() or not service.reader.engine.is_alive:
            raise ApiError(503, "The server takes no more requests.", "not_ready")
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse, responses={401: {"model": ErrorBody}})
    def write_metrics(request: Request) -> Response:
        """Return metrics for Prometheus."""
        service.identify(request)
        return Response(service.metrics.write(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI) -> None:
    for path, name in (("/", "page.html"), ("/page.css", "page.css"), ("/page.js", "page.js")):
        app.add_api_route(path, _serve(PAGE / name), include_in_schema=False, response_model=None)


def _serve(path: Path) -> Callable[[], Response]:
    def serve_file() -> Response:
        return FileResponse(path, headers=PAGE_HEADERS)

    return serve_file


def _add_errors(app: FastAPI) -> None:
    async def tell_api_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return write_error(error)

    async def tell_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = f"Invalid URL ({request.method} {request.url.path})"
        return write_error(ApiError(error.status_code, message, "unknown_url", headers=error.headers))

    async def tell_failure(_: Request, error: Exception) -> JSONResponse:
        log_failure(error)
        return write_error(ApiError(500, "The server failed to handle this request.", "failed"))

    app.add_exception_handler(ApiError, tell_api_error)
    app.add_exception_handler(HTTPException, tell_http_error)
    app.add_exception_handler(Exception, tell_failure)


def _describe(app: FastAPI, service: ChatService) -> dict[str, Any]:
    """Return the OpenAPI document: routes, and the form of a request with the models, stacks and limits of this server."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schema = ChatRequest.model_json_schema(ref_template="#/components/schemas/{model}")
        components = document.setdefault("components", {}).setdefault("schemas", {})
        components.update(schema.pop("$defs", {}))
        components["ChatRequest"] = schema
        schema["properties"]["model"]["enum"] = service.reader.names
        _find_choice(components["GuardOptions"]["properties"]["stack"])["enum"] = list(service.reader.engine.stacks)
        for name, limit in (("max_tokens", "max_tokens"), ("max_completion_tokens", "max_tokens"), ("n", "max_batch")):
            _find_choice(schema["properties"][name])["maximum"] = getattr(service.limits, limit)
        app.openapi_schema = document
    return app.openapi_schema


def _find_choice(field: dict[str, Any]) -> dict[str, Any]:
    """Return the alternative of a field that may also be null."""
    choice: dict[str, Any] = next(choice for choice in field["anyOf"] if choice["type"] != "null")
    return choice
