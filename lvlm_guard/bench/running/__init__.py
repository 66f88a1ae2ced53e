"""Run suites over systems and keep every raw answer."""
