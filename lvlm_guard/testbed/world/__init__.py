"""The drawn world: its habits, its scenes and the language that describes them."""
