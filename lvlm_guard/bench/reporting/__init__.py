"""Turn the answers of a run into figures, tables and a page."""
