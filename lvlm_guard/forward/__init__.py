"""The gated forward wrapper, the decode step and its executors; the only code that knows generate's internals."""

from lvlm_guard.forward.decode import GuardedDecode as GuardedDecode
from lvlm_guard.forward.decoding_loop import GuardedLoop as GuardedLoop
from lvlm_guard.forward.interventions.compiled import is_compiled as is_compiled
from lvlm_guard.forward.interventions.compiled import run_uncompiled as run_uncompiled
from lvlm_guard.forward.interventions.layers import LayerInterventions as LayerInterventions
from lvlm_guard.forward.preparation import PreparedDecode as PreparedDecode
from lvlm_guard.forward.preparation import capture_decode as capture_decode
from lvlm_guard.forward.wrapper import run_guarded as run_guarded

__all__ = [
    "GuardedDecode",
    "GuardedLoop",
    "LayerInterventions",
    "PreparedDecode",
    "capture_decode",
    "is_compiled",
    "run_guarded",
    "run_uncompiled",
]
