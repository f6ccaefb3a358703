"""Trace some steps with torch's profiler, for `chrome://tracing` or Perfetto."""

from __future__ import annotations

import gzip
import hashlib
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from orchestrator.config.schema import Profile
from shards.store import Store

FOLDER = "profile"


class StepProfiler:
    """A profiler of `profile.steps` steps of one worker, after `profile.skip_first` steps."""

    def __init__(self, profile: Profile, first_step: int, store: Store) -> None:
        self._begins = first_step + profile.skip_first
        self._ends = self._begins + profile.steps
        self._store = store
        self._profiler: torch.profiler.profile | None = None
        self.step_taken(first_step)

    def step_taken(self, step: int, *, last: bool = False) -> str:
        """Start or end the trace if due; return the key of the written trace, or ""."""
        if self._profiler is None and self._begins <= step < self._ends:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.start()
            self._begins = step
        elif self._profiler is not None and (last or step >= self._ends):
            return self._write(step)
        return ""

    def _write(self, step: int) -> str:
        assert self._profiler is not None, "called while a trace is being taken"
        self._profiler.stop()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "trace.json")
            self._profiler.export_chrome_trace(str(file))
            trace = gzip.compress(file.read_bytes(), mtime=0)
        key = f"{FOLDER}/steps-{self._begins}-to-{step}-{hashlib.sha256(trace).hexdigest()[:8]}.json.gz"
        self._profiler, self._begins = None, self._ends
        self._store.write(key, trace)
        return key
