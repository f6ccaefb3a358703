"""Limits of the numbers that a command line takes. Larger ones fail in system calls and libraries."""

from __future__ import annotations

MAX_NUMBER = 10**10
"""300 years in seconds, more images and bytes than any option means."""
MAX_THREADS = 1024
"""Threads, or processes, of one machine."""
MAX_SEED = 2**63 - 1
"""The largest seed that torch takes."""
