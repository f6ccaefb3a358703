"""MIRAGE: a U-shaped network that predicts the residual between clean and degraded image.  Paper: Sec. 4, Fig. 2."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from mirage.blocks import Block, pointwise
from mirage.checkpointing import checkpointed
from mirage.config import TOTAL_STRIDE, ActivationCheckpointing, ModelConfig, Stage
from mirage.cost import is_checkpointed
from mirage.droppath import drop_path_scales
from mirage.spd import SPDHead


class Output(NamedTuple):
    """The model's output. The embeddings are None in eval mode, and always if `alignment` is `none`."""

    image: Tensor
    """The restored images (b, 3, h, w), not clipped."""
    shallow: Tensor | None
    """The descriptor of the shallow features: unit vectors (b, d), or with `geodesic` matrices (b, r, r)."""
    latent: Tensor | None
    """The descriptor of the latent features."""


class BlockStack(nn.ModuleList):
    """The blocks of one stage."""

    def __init__(self, stage: Stage, config: ModelConfig) -> None:
        super().__init__(Block(stage.channels, stage.heads, config) for _ in range(stage.blocks))
        self.checkpointed = False

    def forward(self, x: Tensor, path_scales: Tensor | None) -> Tensor:
        """Apply the blocks to x (b, h, w, c); path_scales (blocks, b) or None."""
        use_checkpoints = self.checkpointed and torch.is_grad_enabled()
        for i, block in enumerate(self):
            scale = None if path_scales is None else path_scales[i]
            x = checkpointed(block, x, scale) if use_checkpoints else block(x, scale)
        return x


class Conv3x3(nn.Conv2d):
    """A bias-free 3x3 convolution on channels-last maps."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (b, h, w, inputs) → (b, h, w, outputs)."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Downsample(nn.Module):
    """A layer that halves the resolution and doubles the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Downsample x (b, h, w, c) → (b, h/2, w/2, 2c)."""
        y: Tensor = self.conv(x)
        batch, height, width, channels = y.shape
        y = y.reshape(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 5, 2, 4)
        return y.reshape(batch, height // 2, width // 2, 4 * channels)


class Upsample(nn.Module):
    """A layer that doubles the resolution and halves the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample x (b, h, w, c) → (b, 2h, 2w, c/2)."""
        y: Tensor = self.conv(x)
        batch, height, width, channels = y.shape
        y = y.reshape(batch, height, width, channels // 4, 2, 2).permute(0, 1, 4, 2, 5, 3)
        return y.reshape(batch, 2 * height, 2 * width, channels // 4)


class MIRAGE(nn.Module):
    """The network of a `ModelConfig`.

    `drop_path_seed` seeds DropPath together with the `keys` of the samples.
    """

    encoder1: BlockStack
    encoder2: BlockStack
    encoder3: BlockStack
    latent: BlockStack
    decoder3: BlockStack
    decoder2: BlockStack
    decoder1: BlockStack
    refinement: BlockStack

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.drop_path_seed = 0
        self.hidden_multiple = 1
        """The multiple to which hidden widths are padded with zeros; above 1 in models from `mirage.padding`."""
        d = config.dim

        self.patch_embed = Conv3x3(3, d)
        for stage in config.stages():
            self.add_module(stage.name, BlockStack(stage, config))
        self.down1 = Downsample(d)
        self.down2 = Downsample(2 * d)
        self.down3 = Downsample(4 * d)
        self.reduce_latent = pointwise(8 * d, 4 * d)
        self.up3 = Upsample(4 * d)
        self.reduce3 = pointwise(6 * d, 4 * d)
        self.up2 = Upsample(4 * d)
        self.reduce2 = pointwise(4 * d, 2 * d)
        self.up1 = Upsample(2 * d)
        self.output = Conv3x3(2 * d, 3)
        if config.alignment != "none":
            shallow, latent = config.head_channels()
            self.spd_shallow = SPDHead(d, shallow, config.spd_embed_dim, config.alignment)
            self.spd_latent = SPDHead(4 * d, latent, config.spd_embed_dim, config.alignment)

    def forward(self, degraded: Tensor, keys: Tensor | None = None) -> Output:
        """Restore a batch.

        degraded (b, 3, h, w): RGB in [0, 1], h and w multiples of 8.
        keys (b,): int64 global positions of the samples, which seed DropPath in training.
        """
        self._check(degraded)
        scales = self._path_scales(degraded, keys)

        x = self.patch_embed(degraded.permute(0, 2, 3, 1).contiguous())
        e1 = self.encoder1(x, scales["encoder1"])
        e2 = self.encoder2(self.down1(e1), scales["encoder2"])
        e3 = self.encoder3(self.down2(e2), scales["encoder3"])
        latent = self.reduce_latent(self.latent(self.down3(e3), scales["latent"]))
        y = self.reduce3(torch.cat((self.up3(latent), e3), dim=3))
        y = self.reduce2(torch.cat((self.up2(self.decoder3(y, scales["decoder3"])), e2), dim=3))
        y = torch.cat((self.up1(self.decoder2(y, scales["decoder2"])), e1), dim=3)
        y = self.refinement(self.decoder1(y, scales["decoder1"]), scales["refinement"])
        image = self.output(y).permute(0, 3, 1, 2) + degraded

        if not self.training or self.config.alignment == "none":
            return Output(image, None, None)
        shallow = e1 if self.config.shallow_tap == "encoder1" else x
        return Output(image, self.spd_shallow(shallow), self.spd_latent(latent))

    def checkpoint_activations(self, which: ActivationCheckpointing) -> None:
        """Choose the blocks that keep only their input and run again in the backward pass, with the same results.

        `full_resolution`: the eight (S: nine) blocks that keep most, those of encoder 1, decoder 1 and refinement.
        """
        if which not in get_args(ActivationCheckpointing):
            raise ValueError(
                f"activation_checkpointing={which!r}: must be one of {', '.join(get_args(ActivationCheckpointing))}."
            )
        for stage in self.config.stages():
            stack: BlockStack = getattr(self, stage.name)
            stack.checkpointed = is_checkpointed(stage, which)

    def _check(self, degraded: Tensor) -> None:
        shape = tuple(degraded.shape)
        if degraded.dim() != 4 or shape[1] != 3 or shape[2] % TOTAL_STRIDE or shape[3] % TOTAL_STRIDE:
            raise ValueError(
                f"degraded has shape {shape}: the model takes (b, 3, h, w) with h and w multiples of "
                f"{TOTAL_STRIDE}. mirage.restore takes any size."
            )
        if self.training and shape[2] * shape[3] < 2 * TOTAL_STRIDE**2:
            raise ValueError(
                f"degraded has shape {shape}: a single latent pixel per image has no covariance. "
                f"Train on crops of at least 16 pixels."
            )

    def _path_scales(self, degraded: Tensor, keys: Tensor | None) -> dict[str, Tensor | None]:
        """Draw DropPath's factors of all blocks at once; return them by stage, (blocks, b)."""
        stages = self.config.stages()
        if not self.training or self.config.drop_path == 0:
            return {stage.name: None for stage in stages}
        scales = drop_path_scales(
            self.config.drop_path,
            sum(stage.blocks for stage in stages),
            degraded.shape[0],
            keys,
            self.drop_path_seed,
            degraded.device,
        )
        parts = torch.split(scales, [stage.blocks for stage in stages])
        return {stage.name: part for stage, part in zip(stages, parts, strict=True)}
