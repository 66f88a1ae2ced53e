"""Evidence: what the picture itself shows, read off its tokens by a fitted head, added to what the model would say."""

from collections.abc import Callable

from lvlm_guard import hookimpl
from lvlm_guard_evidence.patch_evidence import PatchEvidence as PatchEvidence

__all__ = ["PatchEvidence"]


@hookimpl
def register_strategies(register: Callable[[type], None]) -> None:
    """Offer the family."""
    register(PatchEvidence)
