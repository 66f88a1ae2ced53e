"""Who runs strategies: discovery, the strict manager, and stacks."""
