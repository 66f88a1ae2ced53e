"""How main and its branches are run in one forward call of generate: one after the other, or as one batch."""
