"""Deprecated: training is in `lvlm_guard.testbed.training`, and starts by `python -m lvlm_guard.testbed.training`."""

from __future__ import annotations

from lvlm_guard.deprecation import moved_names, warn_renamed

_NAMES = {
    "NOMINAL_MINUTES": "NOMINAL_MINUTES",
    "Plan": "TrainingPlan",
    "main": "main",
    "run": "run",
    "usual_processes": "usual_processes",
}

__getattr__ = moved_names(
    "lvlm_guard.testbed.train", {old: f"lvlm_guard.testbed.training.train:{new}" for old, new in _NAMES.items()}
)

if __name__ == "__main__":
    from lvlm_guard.testbed.training.train import main

    warn_renamed("python -m lvlm_guard.testbed.train", "python -m lvlm_guard.testbed.training", stacklevel=2)
    main()
