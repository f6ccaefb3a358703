"""The operators of degradations, a module for each kind; importing this package registers them all."""
