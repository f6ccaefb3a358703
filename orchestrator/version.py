"""Identify the code that produced a result."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def code_version() -> str:
    """Return the package version, with the commit (and `+changes`) when the code runs from a git checkout."""
    release = version("mirage-orchestrator")
    commit = git_commit()[:12]
    changed = "+changes" if commit and _git("status", "--porcelain", "--untracked-files=no") else ""
    return f"{release}+{commit}{changed}" if commit else release


def git_commit() -> str:
    """Return the commit of the git checkout that the code runs from, "" outside one."""
    return _git("rev-parse", "HEAD") if (_ROOT / ".git").exists() else ""


def _git(*words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words], cwd=_ROOT, capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
