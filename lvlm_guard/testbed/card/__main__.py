"""`python -m lvlm_guard.testbed.card`."""

from lvlm_guard.testbed.card.measuring import main

main()
