"""Run a training job, from its file to a registered model."""
