"""What a stack does to a model, as files for programs without a guard: checkpoints with edited weights, and steering vectors."""
