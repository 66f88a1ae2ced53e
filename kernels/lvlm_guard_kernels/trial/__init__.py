"""Whether Triton compiles and launches here: the smallest kernel, tried once for each device."""
