"""Reports of diagnoses, of answers and of models: one HTML page each, JSON and CSV."""
