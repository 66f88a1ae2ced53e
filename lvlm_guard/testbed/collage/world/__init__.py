"""The world of collages: pictures with names, what language expects of them, scenes that keep and scenes that break that, and words."""
