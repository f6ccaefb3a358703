"""Measure any model on any benchmark, image by image, and report the scores."""
