"""Turn answers into scores with intervals."""
