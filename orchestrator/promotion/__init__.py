"""Check a model version against gates before an alias moves to it."""
