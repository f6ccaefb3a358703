"""Degradations that are applied while samples are read: pipelines of operators with drawn parameters."""
