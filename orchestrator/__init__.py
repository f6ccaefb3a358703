"""Train, evaluate and register image restoration models from job files, on Ray."""
