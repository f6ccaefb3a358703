"""The model that MLflow keeps and serves, made from this file: code and weights, no pickle.

MLflow copies this file, the package `mirage` and the module `photos` (as `mirage_photos`, see `registry`) into each
registered version, so a version runs wherever the requirements it names are installed: this project need not be there.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from numpy.typing import NDArray

import mirage


class RestorationModel(PythonModel):  # type: ignore[misc]  # mlflow carries no types
    """Restores images of any size, each kind of input to its like.

    An array of floats in [0, 1], (3, h, w) or (b, 3, h, w): to such an array.
    The bytes of a JPEG, PNG, TIFF, WebP or BMP file: to the bytes of the restored file; base64 text to base64 text.
    A list of any of these, whose sizes may differ: to a list.
    """

    def load_context(self, context: Any) -> None:
        """Load the weights that lie beside this file; their header holds the configuration."""
        self.model = mirage.load(context.artifacts["weights"])

    # MLflow makes a schema of the input's type hint and warns of all it cannot: `np.ndarray` it lets be.
    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Any:
        """Restore what is given."""
        return self._restored(model_input)

    def _restored(self, given: Any) -> Any:
        if isinstance(given, bytes):
            return self._file(given)
        if isinstance(given, str):
            return base64.b64encode(self._file(base64.b64decode(given, validate=True))).decode()
        if isinstance(given, list | tuple) or (isinstance(given, np.ndarray) and given.dtype.kind in "OSU"):
            return [self._restored(one) for one in given]
        return self._pixels(np.asarray(given, np.float32))

    def _file(self, data: bytes) -> bytes:
        from mirage_photos.imaging.photos import decode, encode  # type: ignore[import-not-found]

        photo = decode(data, "the image")
        restored: bytes = encode(self._pixels(photo.pixels), photo)
        return restored

    def _pixels(self, degraded: NDArray[np.float32]) -> NDArray[np.float32]:
        restored: NDArray[np.float32] = mirage.restore(self.model, torch.from_numpy(degraded)).numpy()
        return restored


set_model(RestorationModel())
