"""Register and find model versions in MLflow."""
