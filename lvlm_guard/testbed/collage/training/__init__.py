"""Teaching the assembled model to see: a projector, a table of places and low-rank changes of the language model."""
