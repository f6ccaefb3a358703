"""The perceptual distance is that of torchvision's VGG networks, for the weights of a file."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirage.perceptual import PerceptualDistance, feature_tensors

LAYOUTS = {
    # torchvision.models.vgg.cfgs "D" and "E"
    "VGG-16": [64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"],
    "VGG-19": [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"],
}


def vgg(layout: str) -> nn.Sequential:
    """The part `features` of torchvision's network, with small random weights."""
    layers: list[nn.Module] = []
    channels = 3
    for width in LAYOUTS[layout]:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            convolution = nn.utils.skip_init(nn.Conv2d, channels, width, 3, padding=1)
            row = torch.randn(9 * channels) * (2 / (9 * channels)) ** 0.5
            convolution.weight.data.copy_(row.view(channels, 3, 3).expand(width, -1, -1, -1))
            convolution.bias.data.copy_(0.1 * torch.randn(width))
            layers += [convolution, nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


def published(layout: str) -> dict[str, Tensor]:
    """The tensors of a published file, with one of the classifier, which the distance ignores."""
    torch.manual_seed(0)
    tensors = {f"features.{name}": tensor for name, tensor in vgg(layout).state_dict().items()}
    return {**tensors, "classifier.0.bias": torch.zeros(4096)}


@pytest.mark.parametrize(
    ("layout", "indices"),
    [("VGG-16", {"conv1_2": 2, "conv3_3": 14}), ("VGG-19", {"conv2_1": 5, "conv4_4": 25, "conv5_4": 34})],
)
def test_features_are_those_before_the_relu_of_the_published_network(
    layout: str, indices: dict[str, int]
) -> None:
    tensors = published(layout)
    network = vgg(layout)
    network.load_state_dict(
        {name.removeprefix("features."): t for name, t in tensors.items() if "fea" in name}
    )
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    restored, clean = torch.rand(2, 2, 3, 16, 24).requires_grad_()
    expected = torch.zeros(())
    for weight, index in enumerate(indices.values(), 1):
        a, b = (network[: index + 1]((image - mean) / std) for image in (restored, clean))
        expected = expected + weight * F.l1_loss(a, b)
    distance = PerceptualDistance(tensors, {name: weight for weight, name in enumerate(indices, 1)})
    torch.testing.assert_close(distance(restored, clean), expected)
    assert len(distance.convolutions) == sum(
        isinstance(layer, nn.Conv2d) for layer in network[: max(indices.values()) + 1]
    )
    assert not any(p.requires_grad for p in distance.parameters())


@pytest.mark.parametrize(
    ("change", "layers", "says"),
    [
        ({"features.0.weight": None}, {"conv1_1": 1}, "not the weights of a VGG-16 or VGG-19"),
        ({"features.99.weight": torch.zeros(1)}, {"conv1_1": 1}, "not the weights of a VGG-16 or VGG-19"),
        ({"features.0.weight": torch.zeros(64, 1, 3, 3)}, {"conv1_1": 1}, "is not that of conv1_1"),
        ({}, {"conv3_4": 1}, "there is no layer conv3_4; layers: conv1_1, "),
    ],
)
def test_other_tensors_and_layers_are_refused(change, layers, says: str) -> None:
    tensors = {name: t for name, t in (published("VGG-16") | change).items() if t is not None}
    with pytest.raises(ValueError, match=says):
        PerceptualDistance(tensors, layers)


def test_only_the_convolutions_are_kept() -> None:
    assert "classifier.0.bias" not in feature_tensors(published("VGG-16"))
    with pytest.raises(ValueError, match="not the weights"):
        feature_tensors({"classifier.0.bias": torch.zeros(4096)})
