"""Restore many photographs, each exactly once."""
