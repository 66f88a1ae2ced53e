"""One guarded call: `run` is the recipe, each phase is a frozen value, and `refusals` lists what is refused."""
