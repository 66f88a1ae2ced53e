"""Evidence: what the picture itself shows, read off its tokens by a fitted head, added to what the model would say."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from lvlm_guard import hookimpl
from lvlm_guard_evidence.patch_evidence import PatchEvidence as PatchEvidence

if TYPE_CHECKING:
    from lvlm_guard.fitting import Fitter

__all__ = ["PatchEvidence"]


@hookimpl
def register_strategies(register: Callable[[type], None]) -> None:
    """Offer the family."""
    register(PatchEvidence)


@hookimpl
def register_fitters(register: "Callable[[Fitter], None]") -> None:
    """Offer fitters; they are imported here, since stacks do without them."""
    from lvlm_guard.fitting import Fitter  # noqa: PLC0415
    from lvlm_guard_evidence.patch_evidence_fitter import fit_patch_evidence  # noqa: PLC0415

    register(Fitter("patch_evidence", fit_patch_evidence, data="pictures", aliases=("evidence",)))
