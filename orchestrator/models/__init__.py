"""Build, load and export networks."""
