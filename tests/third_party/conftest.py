"""The outside distribution brings tests of its own; `tests/packaging` installs it and runs those."""

collect_ignore = ["lvlm-guard-example"]
