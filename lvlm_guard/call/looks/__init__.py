"""Looks: the beginning that many prompts share, pictures and all, run once for main and for each branch."""
