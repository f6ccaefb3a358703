"""The distance of VGG features (Johnson et al., 2016), with weights from a file.

The networks are those of Simonyan and Zisserman (2015); tensors have the names that torchvision gives them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirage.kernels.reference import at_least_fp32

_CHANNELS = (64, 128, 256, 512, 512)
"""Channels of each of the five groups of convolutions, which poolings divide."""
_SIZES = {"VGG-16": (2, 2, 3, 3, 3), "VGG-19": (2, 2, 4, 4, 4)}
"""Convolutions in each group."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Statistics of ImageNet, by which the inputs of these networks are normalised."""


class PerceptualDistance(nn.Module):
    """The weighted sum over layers of the mean absolute difference of VGG features."""

    mean: Tensor
    std: Tensor

    def __init__(self, tensors: Mapping[str, Tensor], layers: Mapping[str, float]) -> None:
        """Build the network up to the last of `layers`, layer -> weight.

        tensors: `features.N.weight` and `features.N.bias` of a VGG-16 or VGG-19; others are ignored. Raises ValueError.
        """
        super().__init__()
        self.layers = dict(layers)
        self.convolutions = nn.ModuleDict()
        for name, (index, inputs, outputs) in _convolutions(tensors).items():
            layer = nn.Conv2d(inputs, outputs, 3, padding=1)
            state = {kind: tensors[f"features.{index}.{kind}"] for kind in ("weight", "bias")}
            for kind, tensor in state.items():
                if tensor.shape != getattr(layer, kind).shape or not tensor.is_floating_point():
                    raise ValueError(f"features.{index}.{kind} is not that of {name} of a VGG.")
            layer.load_state_dict(state)
            self.convolutions[name] = layer
        if unknown := sorted(set(layers) - set(self.convolutions)):
            raise ValueError(
                f"there is no layer {', '.join(unknown)}; layers: {', '.join(self.convolutions)}."
            )
        last = max(layers, key=list(self.convolutions).index)
        for name in list(self.convolutions)[list(self.convolutions).index(last) + 1 :]:
            del self.convolutions[name]
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1))
        self.requires_grad_(False)

    def forward(self, restored: Tensor, clean: Tensor) -> Tensor:
        """Return the distance of restored and clean images (b, 3, h, w), a mean over images.

        In fp32; on NVIDIA GPUs the convolutions round to TF32 where torch allows that.
        """
        with torch.autocast(restored.device.type, enabled=False):
            with torch.no_grad():
                wanted = self._features(at_least_fp32(clean))
            found = self._features(at_least_fp32(restored))
            distances = [
                weight * F.l1_loss(found[name], wanted[name]) for name, weight in self.layers.items()
            ]
            return torch.stack(distances).sum()

    def _features(self, image: Tensor) -> dict[str, Tensor]:
        found = {}
        x = (image - self.mean) / self.std
        group = "1"
        for i, (name, convolution) in enumerate(self.convolutions.items()):
            if i:
                x = x.relu()
            if name[4] != group:
                x, group = F.max_pool2d(x, 2), name[4]
            x = convolution(x)
            if name in self.layers:
                found[name] = x
        return found


def feature_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the convolutions alone. Raises ValueError unless they are those of a VGG-16 or VGG-19."""
    _convolutions(tensors)
    return {
        name: t.detach().float().contiguous() for name, t in tensors.items() if name.startswith("features.")
    }


def _convolutions(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int, int]]:
    """Return each convolution by its name, conv<group>_<place>, as its index in torchvision, inputs and outputs."""
    given = {name for name in tensors if name.startswith("features.")}
    for sizes in _SIZES.values():
        index, inputs, found = 0, 3, {}
        for group, (size, outputs) in enumerate(zip(sizes, _CHANNELS, strict=True), 1):
            for place in range(1, size + 1):
                found[f"conv{group}_{place}"] = (index, inputs, outputs)
                index, inputs = index + 2, outputs  # a ReLU follows each
            index += 1  # a pooling follows each group
        names = {f"features.{i}.{kind}" for i, _, _ in found.values() for kind in ("weight", "bias")}
        if names == given:
            return found
    raise ValueError(
        f"these are not the weights of a {' or '.join(_SIZES)} with torchvision's names (features.0.weight, ...)."
    )
