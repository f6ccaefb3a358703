"""Distribute the training step: in one process, with DDP or with DeepSpeed."""
