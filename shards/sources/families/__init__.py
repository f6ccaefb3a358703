"""The published datasets, one module per degradation: layouts, counts, terms."""
