"""The published datasets, one module per degradation, with layouts, counts and terms."""
