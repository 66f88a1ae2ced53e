"""The gated forward wrapper and the two executors; with `protocol`, the only code that knows generate's internals."""

from lvlm_guard.forward.driving import GuardedDecodingLoop as GuardedDecodingLoop
from lvlm_guard.forward.interventions.compiled import as_written as as_written
from lvlm_guard.forward.interventions.compiled import is_compiled as is_compiled
from lvlm_guard.forward.interventions.inside import Inside as Inside
from lvlm_guard.forward.protocol import Prepared as Prepared
from lvlm_guard.forward.protocol import capture as capture
from lvlm_guard.forward.scope import Scope as Scope
from lvlm_guard.forward.wrapper import guarded as guarded

__all__ = ["GuardedDecodingLoop", "Inside", "Prepared", "Scope", "as_written", "capture", "guarded", "is_compiled"]
