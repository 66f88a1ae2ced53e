"""Adapters for evaluation harnesses; each imports its harness when that harness asks for it, never before."""
