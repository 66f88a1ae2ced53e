"""The report of an answer's diagnosis: one HTML page, JSON and CSV."""
