"""Conversion between our tensor names and shapes and those of the authors' release (`Amazingren/MIRAGE`, MIT).

A Lightning `.ckpt` of the release holds `state_dict` with every key under `net.`: 964 tensors for MIRAGE-T, 991 for
MIRAGE-S.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from mirage.config import ModelConfig
from mirage.cost import parameters
from mirage.model import MIRAGE

PREFIX = "net."

# Our name → the release's.
_STAGES = {
    **{f"encoder{i}": f"encoder_level{i}" for i in (1, 2, 3)},
    **{f"decoder{i}": f"decoder_level{i}" for i in (1, 2, 3)},
    "latent": "latent",
    "refinement": "refinement",
}
_IN_BLOCK = {
    "norm1": "norm1.body",
    "norm2": "norm2.body",
    "mixer.attention.qkv_depthwise": "attn.qkv_dwconv",
    "mixer.attention.qkv": "attn.qkv",
    "mixer.attention": "attn",  # its temperature
    "mixer.convolution.norm": "attn.gatedcnn.norm",
    "mixer.convolution.expand": "attn.gatedcnn.gic1",
    "mixer.convolution.kernel_hidden": "attn.gatedcnn.kernel_generator.1",
    "mixer.convolution.kernel_out": "attn.gatedcnn.kernel_generator.3",
    "mixer.convolution.contract": "attn.gatedcnn.gic2",
    "mixer.convolution.project": "attn.gatedcnn.proj_out",
    "mixer.convolution": "attn.gatedcnn",  # its temperature
    "mixer.mlp.expand": "attn.mlp.0",
    "mixer.mlp.contract": "attn.mlp.2",
    "mixer.project": "attn.project_out",
    "ffn.expand": "ffn.project_in",
    "ffn.depthwise": "ffn.dwconv",
    "ffn.contract": "ffn.project_out",
}
_SCALES = {"0": "alpha_att", "1": "alpha_gated", "2": "alpha_mlp"}
_OUTSIDE = {
    "patch_embed": "patch_embed.proj",
    "down1.conv": "down1_2.body.0",
    "down2.conv": "down2_3.body.0",
    "down3.conv": "down3_4.body.0",
    "up3.conv": "up4_3.body.0",
    "up2.conv": "up3_2.body.0",
    "up1.conv": "up2_1.body.0",
    "reduce_latent": "reduce_dim_level3",
    "reduce3": "reduce_chan_level3",
    "reduce2": "reduce_chan_level2",
    "output": "output",
    "spd_shallow.reduce": "reduce_shallow",
    "spd_latent.reduce": "reduce_latent",
    "spd_shallow.project": "spd_proj_shallow",
    "spd_latent.project": "spd_proj_latent",
}


def release_name(name: str) -> str:
    """Return the release's name of one of our tensors."""
    in_block = re.fullmatch(r"(\w+)\.(\d+)\.(.+)\.(\w+)", name)
    if in_block is None:
        module, leaf = name.rsplit(".", 1)
        return f"{_OUTSIDE[module]}.{leaf}"
    stage, index, module, leaf = in_block.groups()
    block = f"{_STAGES[stage]}.{index}"
    if module == "mixer.fusion.scales":
        return f"{block}.attn.{_SCALES[leaf]}"
    return f"{block}.{_IN_BLOCK[module]}.{leaf}"


def release_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the release's shape of our tensor `name`: its matrices are convolutions with kernel size 1."""
    module, _, leaf = name.rpartition(".")
    if module.endswith("depthwise"):
        return shape[0], 1, *shape[1:]
    if module.endswith("mixer.attention") and leaf == "temperature":
        return *shape, 1, 1
    if ".mlp." in name:
        return *shape, 1
    if len(shape) == 2 and not (module.startswith("spd_") and module.endswith("project")):
        return *shape, 1, 1
    return shape


def release_state_dict(model: MIRAGE) -> dict[str, Tensor]:
    """Return the weights of `model` under the release's names and shapes.

    Raises ValueError if the release has no such network: it has ratios 1:1:1 and the paper's mixer and heads only.
    """
    config = model.config
    for name in ("kernels", "fusion", "alignment"):
        value, theirs = getattr(config, name), getattr(ModelConfig(), name)
        if value != theirs:
            raise ValueError(f"{name}={value!r}: the release has no such network; it has {theirs!r} only.")
    if len(set(config.branch_ratios)) != 1:
        raise ValueError(
            f"branch_ratios={config.branch_ratios}: the release has no such network; it has equal shares only."
        )
    return {
        release_name(name): tensor.detach().reshape(release_shape(name, tuple(tensor.shape)))
        for name, tensor in model.state_dict().items()
    }


def from_release(state: Mapping[str, Tensor]) -> MIRAGE:
    """Return a model with the weights of a release `state_dict` (without prefix); the shapes determine the network.

    Raises ValueError if a tensor is missing, unknown or of another shape.
    """
    odd = next((name for name, tensor in state.items() if not isinstance(tensor, Tensor)), None)
    if odd is not None:
        raise ValueError(f"{odd} is no tensor.")
    config = config_of(state)
    stored = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()
    }
    if parameters(config) > sum(stored.values()):  # before a network is built that no memory holds
        raise ValueError(
            f"the shapes imply {parameters(config):,} parameters, and {sum(stored.values()):,} bytes are stored."
        )
    model = MIRAGE(config)
    ours = model.state_dict()
    names = {release_name(name): name for name in ours}
    missing, extra = sorted(names.keys() - state.keys()), sorted(state.keys() - names.keys())
    if missing or extra:
        raise ValueError(
            f"{len(state)} tensors where the release has {len(names)}; "
            f"missing: {_list_some(missing)}; unknown: {_list_some(extra)}."
        )
    for theirs, name in names.items():
        expected = release_shape(name, tuple(ours[name].shape))
        if tuple(state[theirs].shape) != expected:
            raise ValueError(f"{theirs} has shape {tuple(state[theirs].shape)}, expected {expected}.")
    model.load_state_dict({name: state[theirs].reshape(ours[name].shape) for theirs, name in names.items()})
    return model


def config_of(state: Mapping[str, Tensor]) -> ModelConfig:
    """Return the configuration that the shapes of a release `state_dict` imply."""
    levels = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    try:
        dim = state["patch_embed.proj.weight"].shape[0]
        heads = [state[f"{level}.0.attn.temperature"].shape[0] for level in levels]
        hidden = state["encoder_level1.0.ffn.project_out.weight"].shape[1]
        spd = [state[f"reduce_{tap}.weight"].shape[0] for tap in ("shallow", "latent")]
        embed = state["spd_proj_shallow.weight"].shape[0]
    except KeyError as missing:
        raise ValueError(
            f"no tensor {missing.args[0]}: these are not weights of the release's MIRAGE."
        ) from None
    except IndexError:
        raise ValueError(
            "a tensor has too few dimensions: these are not weights of the release's MIRAGE."
        ) from None
    return ModelConfig.from_dict(
        {
            "dim": dim,
            "blocks": [_depth(state, level) for level in levels],
            "refinement_blocks": _depth(state, "refinement"),
            "heads": heads,
            "ffn_expansion": hidden / dim,
            "spd_channels": spd,
            "spd_embed_dim": embed,
        }
    )


def _depth(state: Mapping[str, Tensor], level: str) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(f"{level}.")})


def _list_some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"
