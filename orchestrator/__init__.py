"""A job file becomes a trained, evaluated, registered model, on Ray."""
