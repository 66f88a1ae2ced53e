"""Answers to many questions about many pictures, on one machine: every unit once, whatever happens on the way."""
