"""Judging: any model over any benchmark, image by image, and what is told of it."""
