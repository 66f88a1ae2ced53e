"""What is wrong with a model: exact checks, then the earliest component that departs from a profile of the sound one."""
