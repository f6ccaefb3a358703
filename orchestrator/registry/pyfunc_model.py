"""The MLflow pyfunc model of a registered version, loaded from code and weights without pickle.

MLflow copies this file and the packages `mirage` and `mirage_photos` (see `registration`) into each version, so that a
version runs without this project wherever the requirements that it names are installed.
"""

from __future__ import annotations

import base64
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from numpy.typing import NDArray
from safetensors import safe_open


class RestorationModel(PythonModel):  # type: ignore[misc]  # MLflow has no types
    """Restores images of any size and returns them in the form of the input.

    An array of floats in [0, 1], (3, h, w) or (b, 3, h, w), becomes such an array. The bytes of a JPEG, PNG, TIFF,
    WebP, BMP, AVIF, GIF or HEIC file become the bytes of the restored file, and base64 text of a file becomes base64
    text. A list of any of these, whose sizes may differ, becomes a list.
    """

    def load_context(self, context: Any) -> None:
        """Load the weights; their header contains the configuration, or the code of a user-defined network.

        `mlflow.pyfunc.load_model` runs the code in a version, this file included, so its caller trusts the version.
        """
        path = Path(context.artifacts["weights"])
        with safe_open(path, "np") as file:
            brings_code = "network.code" in (file.metadata() or {})
        if brings_code:
            from mirage_photos.models.network_file import loads  # type: ignore[import-not-found]

            self.restore = loads(path.read_bytes(), trusted="all").restore
        else:  # these names are those of every release, and another version's may be loaded in this process already
            from mirage import load, restore

            self.restore = partial(restore, load(path))

    # MLflow derives a schema from the input's type hint and warns about unknown types, but not about np.ndarray.
    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Any:
        """Return the restored input."""
        return self._restore(model_input)

    def _restore(self, value: Any) -> Any:
        if isinstance(value, bytes):
            return self._restore_file(value)
        if isinstance(value, str):
            return base64.b64encode(self._restore_file(base64.b64decode(value, validate=True))).decode()
        if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.dtype.kind in "OSU"):
            return [self._restore(one) for one in value]
        return self._restore_pixels(np.asarray(value, np.float32))

    def _restore_file(self, data: bytes) -> bytes:
        from mirage_photos.imaging.photos import decode, encode  # type: ignore[import-not-found]

        photo = decode(data, "the image")
        restored: bytes = encode(self._restore_pixels(photo.pixels), photo)
        return restored

    def _restore_pixels(self, degraded: NDArray[np.float32]) -> NDArray[np.float32]:
        restored: NDArray[np.float32] = self.restore(torch.from_numpy(degraded)).numpy()
        return restored


set_model(RestorationModel())
