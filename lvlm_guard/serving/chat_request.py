"""The body of `POST /v1/chat/completions`: what is understood, what is accepted without effect, and what is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lvlm_guard.serving.api_errors import ApiError, describe_invalid

LARGEST_SEED = 2**63 - 1
MOST_STOPS = 4
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none",),
    "parallel_tool_calls": (False, True),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields of OpenAI's that this server does not offer, with the values that ask for nothing; null always does."""


class ChatPart(BaseModel):
    """What every value of a request has in common: exact types, and no fields that nobody reads."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(ChatPart):
    """A text in a message."""

    type: Literal["text"]
    text: str


class PictureLocation(ChatPart):
    """Where a picture is: a data URI, or a URL where the server allows those. `detail` has no effect."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(ChatPart):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: PictureLocation


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(ChatPart):
    """One message. The fields that must be null are what clients send back with an answer that they received."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]
    refusal: None = None
    annotations: list[Any] | None = Field(default=None, max_length=0)
    audio: None = None
    tool_calls: None = None
    function_call: None = None

    @model_validator(mode="after")
    def check_pictures(self) -> ChatMessage:
        """Refuse pictures outside messages of the user."""
        if self.role != "user" and any(isinstance(part, ImagePart) for part in self.parts):
            raise ValueError(f"pictures stand in messages of the user, not of the role {self.role!r}")
        return self

    @property
    def parts(self) -> list[TextPart | ImagePart]:
        """The content as a list of parts."""
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class StreamOptions(ChatPart):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class GuardOptions(ChatPart):
    """What this server adds: which stack of those it offers, and whether the answer brings its report."""

    stack: str | None = None
    report: bool = False


class ChatRequest(ChatPart):
    """A request as OpenAI's clients send it, with `guard` beside their fields."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-LARGEST_SEED, le=LARGEST_SEED)
    stop: str | list[str] | None = None
    n: int | None = Field(default=None, ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    guard: GuardOptions | None = None
    logprobs: Any = None
    top_logprobs: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None
    response_format: Any = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def token_limit(self) -> int | None:
        """Tokens of an answer at most, None where the request does not say."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


def read_chat_request(body: bytes) -> ChatRequest:
    """Read the body of a request.

    Raises:
        ApiError: It is no JSON, has another form, or asks for something that is not offered.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise describe_invalid(error) from None
    _check_offers(request)
    if len(request.stops) > MOST_STOPS or not all(request.stops):
        raise ApiError(400, f"'stop' takes up to {MOST_STOPS} texts that are not empty.", "invalid_value", param="stop")
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "'stream_options' needs 'stream': true.", "invalid_value", param="stream_options")
    return request


def _check_offers(request: ChatRequest) -> None:
    """Refuse fields of OpenAI's that have no meaning here, rather than answer as if they were not there."""
    for name, neutral in NEUTRAL.items():
        value = getattr(request, name)
        if value is not None and value not in neutral:
            raise ApiError(
                400, f"This server does not offer '{name}'. Leave it out.", "unsupported_parameter", param=name
            )
