"""An OpenAI-compatible server round one guarded model: what it is asked, how waiting requests share batches, and its page."""
