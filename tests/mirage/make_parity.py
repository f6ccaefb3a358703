"""Compare this model with the authors' release, and store a small case for test_parity.py.

    python tests/mirage/make_parity.py --release PATH_OF_A_CHECKOUT [--store]

Runs the release's own classes with random weights, every norm, scale and temperature moved off its initial
value, DropPath off. The release imports timm and fvcore; `orchestrator.bench.external_repos` replaces them.
"""

import argparse
import types
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from mirage.loss import LossWeights, restoration_loss
from mirage.release import from_release, release_name, release_shape
from orchestrator.bench.external_repos import load

CASE = Path(__file__).with_name("parity.safetensors")
ZERO_GRADIENTS = ("reduce_shallow.bias", "reduce_latent.bias")  # the covariance removes the mean


def perturb(model: nn.Module) -> nn.Module:
    """Random statistics, norms, scales and temperatures, so that none hides a mistake by being 0 or 1."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and (tensor.dim() <= 1 or "temperature" in name):
                tensor.add_(0.2 * torch.rand_like(tensor))
    return model


def small_release(module: types.ModuleType) -> nn.Module:
    """A release network of 6 channels. Its SPD head has literal widths, so it gets new layers."""
    model = module.MIRAGE(dim=6, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, heads=[1, 1, 2, 2])
    model.reduce_shallow, model.reduce_latent = nn.Conv2d(6, 3, 1), nn.Conv2d(24, 5, 1)
    model.spd_proj_shallow, model.spd_proj_latent = nn.Linear(9, 8), nn.Linear(25, 8)
    return model


def release_results(model: nn.Module, degraded: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """The release's images in eval and training mode, loss, gradients, statistics after one pass."""
    with torch.no_grad():
        image = model.eval()(degraded)[0]
    restored, contrast = model.train()(degraded)
    a, b = torch.fft.rfft2(restored), torch.fft.rfft2(clean)
    fourier = F.l1_loss(torch.stack((a.real, a.imag), -1), torch.stack((b.real, b.imag), -1))
    loss = F.l1_loss(restored, clean) + 0.1 * fourier + contrast
    loss.backward()
    found = {"image.eval": image, "image.train": restored.detach(), "loss": loss.detach()}
    found |= {f"grad.{name}": p.grad for name, p in model.named_parameters()}
    return found | {f"after.{name}": b.clone() for name, b in model.named_buffers()}


def our_results(state: dict[str, Tensor], degraded: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """The same from our model, under the release's names."""
    model = from_release(state)
    model.config = type(model.config).from_dict({**model.config.to_dict(), "drop_path": 0.0})
    with torch.no_grad():
        image = model.eval()(degraded).image
    output = model.train()(degraded)
    loss = restoration_loss(output, clean, LossWeights()).total
    loss.backward()
    found = {"image.eval": image, "image.train": output.image.detach(), "loss": loss.detach()}
    for name, p in model.named_parameters():
        found[f"grad.{release_name(name)}"] = p.grad.reshape(release_shape(name, tuple(p.shape)))
    persistent = {
        name: b for name, b in model.state_dict().items() if "running" in name or "num_batches" in name
    }
    return found | {f"after.{release_name(name)}": b for name, b in persistent.items()}


def differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Absolute differences of images and statistics, relative ones of the loss and the whole gradient."""
    gradients = [n for n in theirs if n.startswith("grad.") and not n.endswith(ZERO_GRADIENTS)]
    statistics = [n for n in theirs if n.startswith("after.")]
    error = sum(float((ours[n] - theirs[n]).double().square().sum()) for n in gradients)
    size = sum(float(theirs[n].double().square().sum()) for n in gradients)
    return {
        "image, eval": float((ours["image.eval"] - theirs["image.eval"]).abs().max()),
        "image, train": float((ours["image.train"] - theirs["image.train"]).abs().max()),
        "loss, relative": float((ours["loss"] - theirs["loss"]).abs() / theirs["loss"]),
        "gradient, relative": (error / size) ** 0.5,
        "statistics": max(float((ours[n] - theirs[n]).double().abs().max()) for n in statistics),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", type=Path, required=True, help="checkout of Amazingren/MIRAGE")
    parser.add_argument("--store", action="store_true", help=f"write {CASE.name}")
    arguments = parser.parse_args()
    tiny, small = (load(arguments.release, f"net.mirage_{size}") for size in ("tiny", "small"))

    print(f"{'':<12}{'parameters':>12}  largest differences")
    for label, build in (
        ("T", tiny.MIRAGE),
        ("S", small.MIRAGE),
        ("6 channels", lambda: small_release(tiny)),
    ):
        torch.manual_seed(0)
        model = perturb(build())
        shape = (2, 3, 16, 24) if label == "6 channels" else (2, 3, 64, 48)
        degraded, clean = torch.rand(shape), torch.rand(shape)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        theirs = release_results(model, degraded, clean)
        found = differences(our_results(before, degraded, clean), theirs)
        count = sum(p.numel() for p in model.parameters())
        print(
            f"{label:<12}{count:>12,}  " + ", ".join(f"{name} {value:.1e}" for name, value in found.items())
        )
    if arguments.store:
        case = {f"state.{name}": tensor for name, tensor in before.items()} | theirs
        case |= {"degraded": degraded, "clean": clean}
        save_file({name: tensor.contiguous() for name, tensor in case.items()}, CASE)
        print(f"{CASE.name}: {CASE.stat().st_size / 2**10:.0f} KiB")


if __name__ == "__main__":
    main()
