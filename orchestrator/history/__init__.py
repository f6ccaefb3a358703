"""Record what happens in a run, beside its checkpoints, and draw its report."""
