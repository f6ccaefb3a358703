"""Inject faults into training runs and check that nothing is lost."""
