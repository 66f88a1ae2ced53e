"""Errors as OpenAI's clients read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from lvlm_guard.errors import InputError, NonFiniteLogits, Refused, quote, shorten

LONGEST_MESSAGE = 800
INVALID = "invalid_request_error"
SERVER = "server_error"
FAILED = 500


class ApiError(Exception):
    """What ends one request, with the HTTP status and the body that OpenAI's clients expect.

    Args:
        status: HTTP status.
        message: What happened and what to do; goes to the client that asked, and into no log.
        code: A word for programs.
        param: The field of the request at fault.
        kind: OpenAI's type of the error.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        param: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = shorten(message, LONGEST_MESSAGE)
        self.code = code
        self.param = param
        self.kind = kind or (INVALID if status < FAILED else SERVER)
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, Any]:
        """Return the body of the answer."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def describe_lateness() -> ApiError:
    """Return what a client is told whose request was not answered by its deadline."""
    return ApiError(504, "The answer was not finished in time. Ask for fewer tokens, or later.", "deadline_exceeded")


def describe_stopping() -> ApiError:
    """Return what a client is told whose request came when the engine took no more."""
    message = "The server is stopping. Ask again in a moment."
    return ApiError(503, message, "stopping", headers={"Retry-After": "5"})


def describe_failure(error: BaseException) -> ApiError:
    """Return what a client is told about an error that its request met in the engine."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InputError):
        return ApiError(400, str(error), "invalid_input")
    if isinstance(error, Refused):
        return ApiError(422, str(error), "guard_refused")
    if isinstance(error, NonFiniteLogits):
        return ApiError(FAILED, str(error), "non_finite_logits")
    return ApiError(FAILED, f"Generation failed ({type(error).__name__}). Other requests are not affected.", "failed")


def describe_invalid(error: ValidationError) -> ApiError:
    """Return the answer to a body of another form: a field at fault, the innermost of those that are, as OpenAI names it."""
    problem = max(error.errors(include_url=False, include_input=False), key=lambda entry: len(entry["loc"]))
    param = _write_location(problem["loc"])
    if problem["type"] == "json_invalid":
        return ApiError(400, f"The body is no valid JSON: {problem['msg']}.", "invalid_json")
    if problem["type"] == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {param}", "unknown_parameter", param=param)
    if problem["type"] == "missing":
        return ApiError(400, f"Missing required parameter: '{param}'.", "missing_required_parameter", param=param)
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    where = f"'{param}': " if param else ""
    return ApiError(400, f"{where}{message}.", "invalid_value", param=param or None)


def _write_location(location: tuple[int | str, ...]) -> str:
    """Return the path of a field, `messages[0].content[1].text`, without the names of alternatives that were tried."""
    path = ""
    for index, part in enumerate(location):
        if isinstance(part, int):
            path += f"[{part}]"
            continue
        is_kind = part in KINDS and index > 0 and isinstance(location[index - 1], int)
        if is_kind or part in ALTERNATIVES or part.startswith("list["):
            continue
        name = part if part.isidentifier() else quote(part)
        path += f".{name}" if path else name
    return shorten(path, 120)


ALTERNATIVES = frozenset({"str", "int", "float", "bool"})
KINDS = frozenset({"text", "image_url"})
"""Names that pydantic puts into the path of a field: of forms that it tried, and of the kind of a part behind its index."""
