"""Locate, pack and open the datasets of a job."""
