"""Tiny random models of every type that transformers maps image and text to text, and a probe of every mechanism on them."""
