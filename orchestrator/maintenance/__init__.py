"""Inspect and clean up what jobs left behind."""
