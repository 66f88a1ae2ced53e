"""The second world: collages of real pictures with names, described by a language model that knew English before it saw any."""
