"""The beginning of a prompt, run once and continued by many prompts."""

from lvlm_guard.forward.prefixes.continuing import capture_positions as capture_positions
from lvlm_guard.forward.prefixes.continuing import continue_prefix as continue_prefix
from lvlm_guard.forward.prefixes.continuing import continuing_inputs as continuing_inputs
from lvlm_guard.forward.prefixes.continuing import leave_out_images as leave_out_images
from lvlm_guard.forward.prefixes.fingerprint import count_changes as count_changes
from lvlm_guard.forward.prefixes.fingerprint import describe_kind as describe_kind
from lvlm_guard.forward.prefixes.fingerprint import describe_state as describe_state
from lvlm_guard.forward.prefixes.prefix import Prefix as Prefix
from lvlm_guard.forward.prefixes.prefix import run_prefix as run_prefix
from lvlm_guard.forward.prefixes.prefix import shorten_prefix as shorten_prefix
