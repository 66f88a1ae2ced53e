"""The model card of the testbed: measured by `python -m lvlm_guard.testbed.card --weights DIR`."""
