"""The MIRAGE image restoration model in plain PyTorch, independent of the orchestrator."""

from mirage.config import ModelConfig
from mirage.model import MIRAGE, Output
from mirage.restore import restore
from mirage.weights import load, load_release, save

__all__ = ["MIRAGE", "ModelConfig", "Output", "load", "load_release", "restore", "save"]
