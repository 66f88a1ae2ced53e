"""Tuning: search stacks under a cost limit on calibration items, judge them on held-out ones, and try remedies.

A search is a `Tuning`, and `tune` does it. Needs Optuna, which the extra `tune` brings. `remedies` needs nothing more.
"""
