"""What a command is asked: checked before a model is loaded, and explained where the model cannot take it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_guard.errors import GuardError, InputError, shorten

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_REASON = 400


def check_question(prompt: str) -> None:
    """Refuse a question without words.

    Raises:
        InputError: It is empty.
    """
    if not prompt.strip():
        raise InputError("--prompt is empty. Write a question or an instruction.")


def check_placeholder(prompt: str, processor: Any) -> None:
    """Refuse a question that holds the model's placeholder of pictures: the chat template puts it there.

    Raises:
        InputError: It does.
    """
    token = getattr(processor, "image_token", None)
    if isinstance(token, str) and token and token in prompt:
        raise InputError(
            f"--prompt holds {token!r}, which is put there for every picture. Leave it out of the question."
        )


def check_picture(path: Path) -> Image:
    """Return a picture, RGB and upright, and refuse what cannot be read as one before a model is loaded.

    Raises:
        InputError: There is no such file, or it is no whole picture.
    """
    from lvlm_guard.request import picture_loading  # noqa: PLC0415 - slow to import

    try:
        return picture_loading.read_picture(path)
    except InputError as error:
        raise InputError(f"--image: {error}") from None


@contextmanager
def readable_model_errors(advice: str) -> Iterator[None]:
    """Turn what a model or processor raises at a question that it cannot take into an error that says so.

    Args:
        advice: What to do, as the end of the message.

    Raises:
        InputError: The model or processor raised a ValueError, a RuntimeError or the like.
    """
    try:
        yield
    except GuardError:
        raise
    except (ValueError, RuntimeError, TypeError, LookupError) as error:
        reason = shorten(str(error).strip().split("\n")[0], LONGEST_REASON) or type(error).__name__
        raise InputError(f"Plain generate cannot answer this: {reason}{advice}") from error
