"""Adapters for evaluation harnesses. An adapter imports its harness only after that harness has loaded the adapter."""
