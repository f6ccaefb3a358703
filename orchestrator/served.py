"""The model that MLflow keeps and serves, made from this file: code and weights, no pickle.

MLflow copies this file and the package `mirage` into each registered version, so a version runs wherever the
requirements it names are installed: this project need not be there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from numpy.typing import NDArray

import mirage


class Restorer(PythonModel):  # type: ignore[misc]  # mlflow carries no types
    """Restores a batch of images: float32 RGB in [0, 1], (b, 3, h, w), any h and w."""

    def load_context(self, context: Any) -> None:
        """Load the weights that lie beside this file; their header holds the configuration."""
        self.model = mirage.load(context.artifacts["weights"])

    # MLflow makes a schema of the input's type hint and warns of all it cannot: `np.ndarray` it lets be.
    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> NDArray[np.float32]:
        """Restore a batch."""
        restored: NDArray[np.float32] = mirage.restore(self.model, torch.from_numpy(model_input)).numpy()
        return restored


set_model(Restorer())
