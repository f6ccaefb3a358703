"""Identify the code that produced a result."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path


def code_version() -> str:
    """Return the package version, with the commit (and `+changes`) when the code runs from a git checkout."""
    release = version("mirage-orchestrator")
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return release
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    changed = "+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else ""
    return f"{release}+{commit}{changed}" if commit else release


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
