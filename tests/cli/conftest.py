"""The command line quietens transformers for its process; tests share theirs."""

from speaking import transformers_speaks_again  # noqa: F401 - a fixture
