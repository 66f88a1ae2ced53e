"""`python -m lvlm_guard.testbed.training`."""

from lvlm_guard.testbed.training.train import main

main()
