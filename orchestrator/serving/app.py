"""The import path of the Serve application: `serve run orchestrator.serving.app:build model=models:/NAME@champion`."""

from __future__ import annotations

from orchestrator.serving.ray_app import build

__all__ = ["build"]
