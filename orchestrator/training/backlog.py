"""Keep the host at most two steps ahead of its device.

Steps do not wait for the device, so the host could queue hundreds of them: times measured on the host would not be
those of steps, and a wait for data would be counted while the device is busy. The device still always has a step to do.
"""

from __future__ import annotations

from collections import deque

import torch

STEPS_AHEAD = 2


class Backlog:
    """The steps that a device has still to do."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ends: deque[torch.cuda.Event] = deque()

    def step_queued(self) -> None:
        """Wait until the device has done all steps but the newest ones."""
        if self._device.type != "cuda":
            return
        end = torch.cuda.Event()  # type: ignore[no-untyped-call]
        end.record(torch.cuda.current_stream(self._device))
        self._ends.append(end)
        if len(self._ends) > STEPS_AHEAD:
            self._ends.popleft().synchronize()
