"""Of an answer: which words can be trusted, and what is known of why the others were said."""
