"""Weights files of any network: a MIRAGE, or a user-defined network together with its source code.

Both are safetensors. The header of a MIRAGE holds its configuration. That of a user-defined network holds its class,
arguments, adapter and source (`NetworkCode`), so a weights file is all that restoring needs. Reading such a file runs
its code: `loads` asks for consent, which names the code by its digest.

A registered version carries this module too (see `registry.registration`), so it imports nothing above `errors`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import mirage
from mirage import MIRAGE
from mirage.config import TOTAL_STRIDE
from mirage.inference import Mode, RepeatedSizes
from mirage.inference import whole_bytes as mirage_whole_bytes
from mirage.weights import CONFIG_KEY, WeightsError, read_metadata, to_bytes
from mirage.weights import dumps as mirage_dumps
from mirage.weights import loads as mirage_loads

from ..errors import UntrustedCodeError
from .network_code import NetworkCode
from .user_network import UserModelAdapter

CODE_KEY = "network.code"
"""Header entry with the code of a user-defined network."""
_CALL_KEY = "network.call"
"""Header entry with the stride and the tile of a user-defined network."""

Trusted = Collection[str] | Literal["all"]
"""Digests of the code that may run. `all` is for bytes whose code the sender has consented to: those of a driver."""


class RestoringNetwork(Protocol):
    """A network that restores images of any size: all that commands, jobs and the service use of a model."""

    bounded_mode: Mode
    """Mode that restores large images in little memory."""

    @property
    def module(self) -> nn.Module:
        """The module that computes; its output has the attribute `image`."""

    @property
    def stride(self) -> int:
        """The module takes images whose sides are multiples of this."""

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""

    def restore(
        self,
        degraded: Tensor,
        mode: Mode = "auto",
        *,
        tile: int = 512,
        overlap: int = 64,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Restore one image (3, h, w) or a batch (b, 3, h, w) in eval mode; the result is in [0, 1]."""

    def whole_bytes(self, batch: Tensor) -> int | None:
        """Estimate the memory of restoring a batch at once; None: unknown."""


class MirageNetwork:
    """A MIRAGE as a RestoringNetwork."""

    bounded_mode: Mode = "strips"
    stride = TOTAL_STRIDE

    def __init__(self, model: MIRAGE) -> None:
        self.module = model
        self._sizes = RepeatedSizes(model)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.module.output.weight.device

    def restore(
        self,
        degraded: Tensor,
        mode: Mode = "auto",
        *,
        tile: int = 512,
        overlap: int = 64,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Call `mirage.restore`, on CUDA with graphs for small sizes that come again."""
        graphs = self._sizes.graphs(degraded)
        return mirage.restore(
            self.module, degraded, mode, tile=tile, overlap=overlap, graphs=graphs, progress=progress
        )

    def whole_bytes(self, batch: Tensor) -> int | None:
        """Estimate the memory of restoring a batch at once."""
        return mirage_whole_bytes(self.module, batch)


def restoring(network: nn.Module | RestoringNetwork) -> RestoringNetwork:
    """Return a MIRAGE, or a network that restores already, as a RestoringNetwork."""
    if isinstance(network, MIRAGE):
        return MirageNetwork(network)
    assert not isinstance(network, nn.Module) or isinstance(network, UserModelAdapter)
    return network


def dumps(network: RestoringNetwork | MIRAGE, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the weights as a safetensors file with `metadata` in its header.

    The file of a user-defined network has its code, if the network knows it; otherwise reading needs the class.
    """
    module = network if isinstance(network, MIRAGE) else network.module
    if isinstance(module, MIRAGE):
        return mirage_dumps(module, metadata)
    assert isinstance(module, UserModelAdapter)
    kind = type(module.inner)
    header = {**(metadata or {}), "class": f"{kind.__module__}:{kind.__qualname__}"}
    if module.code is not None:
        call = {"stride": module.stride, "tile": module.tile}
        header |= {CODE_KEY: module.code.dumps(), _CALL_KEY: json.dumps(call)}
    # Copies: safetensors refuses tensors that share memory.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in module.inner.state_dict().items()
    }
    return to_bytes(tensors, header)


def code_of(data: bytes) -> NetworkCode | None:
    """Return the code in a weights file, None for a MIRAGE; nothing is run. Raises ModelError, WeightsError."""
    header = read_metadata(data)
    return NetworkCode.loads(header[CODE_KEY]) if CODE_KEY in header else None


def loads(data: bytes, device: str | torch.device = "cpu", *, trusted: Trusted) -> RestoringNetwork:
    """Return the network in a weights file, in eval mode.

    Raises UntrustedCodeError if the file brings code that is not `trusted`, ModelError and WeightsError if it is
    damaged.
    """
    header = read_metadata(data)
    if CODE_KEY not in header:
        if CONFIG_KEY not in header and "class" in header:
            raise WeightsError(
                f"the weights of {header['class']} without its code: an earlier release wrote them. Evaluate them as "
                "model.weights of their model.class, or train and register again."
            )
        return MirageNetwork(mirage_loads(data, device))
    code = NetworkCode.loads(header[CODE_KEY])
    require_consent(code, trusted)
    stride, tile = _call_values(header.get(_CALL_KEY, ""))
    with torch.random.fork_rng(devices=()):
        inner, call = code.build()
    try:
        inner.load_state_dict(safetensors.torch.load(data))
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(f"the tensors do not fit {code.class_}: {error}") from error
    return UserModelAdapter(inner, stride, tile, call, code).to(device).eval()


def require_consent(code: NetworkCode, trusted: Trusted, name: str = "MODEL") -> None:
    """Raise UntrustedCodeError unless the code of the model `name` may run."""
    if trusted != "all" and code.digest not in trusted:
        raise UntrustedCodeError(
            f"it brings Python code: {code.class_}, with the modules {', '.join(code.modules)}. Read it "
            f"(`mirage network-code {shlex.quote(name)} -o FOLDER`), and if you trust it, consent with "
            f"--trust {code.digest}, or with `trust: [{code.digest}]` in a job. A consent to other code, such as that "
            "of an earlier version, does not count."
        )


def _call_values(text: str) -> tuple[int, int | None]:
    try:
        values: Any = json.loads(text)
        stride, tile = values["stride"], values["tile"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WeightsError("the header does not say how to call the network.") from error
    if not (
        isinstance(stride, int) and stride > 0 and (tile is None or (isinstance(tile, int) and tile > 0))
    ):
        raise WeightsError(f"the header says stride {stride!r} and tile {tile!r}.")
    return stride, tile
