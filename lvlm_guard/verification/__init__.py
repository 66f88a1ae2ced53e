"""Show what works on a model: plain and guarded runs compared over a few steps."""

from lvlm_guard.verification.checks import Check as Check
from lvlm_guard.verification.results import Verification as Verification
from lvlm_guard.verification.results import VerifiedModel as VerifiedModel
from lvlm_guard.verification.verifying import verify as verify

__all__ = ["Check", "Verification", "VerifiedModel", "verify"]
