"""What an author of strategies writes with: branches, edits, searches, terms, and the hooks that return them."""
