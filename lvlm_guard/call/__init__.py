"""One guarded call, from arguments to output and report."""
