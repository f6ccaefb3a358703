"""Estimate memory, time and cost before a job is launched."""
