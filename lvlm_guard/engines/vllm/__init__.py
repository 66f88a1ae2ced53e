"""Guarded decoding inside vLLM: groups of requests in step, combined before the sampler. Needs the extra `vllm`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lvlm_guard.errors import InputError

if TYPE_CHECKING:
    from lvlm_guard.engines.vllm.llm import GuardedLLM as GuardedLLM

__all__ = ["GuardedLLM"]
VERSION = "0.32"
"""The minor version of vLLM whose private hooks the scheduler overrides."""


def __getattr__(name: str) -> Any:
    if name != "GuardedLLM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_version()
    from lvlm_guard.engines.vllm.llm import GuardedLLM  # noqa: PLC0415 - vLLM takes seconds to import

    return GuardedLLM


def check_version() -> None:
    """Refuse to work with no vLLM, or with one that the scheduler was not made for.

    Raises:
        InputError: Names the extra.
    """
    if find_spec("vllm") is None:
        raise InputError("vLLM is not installed: pip install 'lvlm-guard[vllm]', in an environment of its own.")
    from vllm import __version__  # noqa: PLC0415 - as above

    if not __version__.startswith(f"{VERSION}."):
        raise InputError(
            f"Groups of requests work with vLLM {VERSION}, got {__version__}: pip install 'lvlm-guard[vllm]'."
        )
