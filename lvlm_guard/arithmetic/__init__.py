"""The terms of a forward as one kernel call, and what had an effect."""
