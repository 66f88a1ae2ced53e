"""One request: its arguments, prompts, images and conversations."""
