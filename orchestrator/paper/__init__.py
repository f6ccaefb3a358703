"""Hold the paper's published tables as data."""
