"""What was asked: arguments, prompts, images and conversations."""
