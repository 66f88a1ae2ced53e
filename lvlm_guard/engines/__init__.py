"""Guarded decoding inside serving engines."""
