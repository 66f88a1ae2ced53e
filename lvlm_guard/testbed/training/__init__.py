"""Training of the bundled model, from scratch."""
