"""Compile the Triton kernels for a GPU that this machine lacks, as the model would launch them; print JSON.

Every launch of a training step is compiled with its arguments to machine code of a Hopper GPU, by the compiler and
assembler in Triton's wheel, and not run.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from mirage.kernels.triton import (
    attention_branch,
    convolution_branch,
    feed_forward_branch,
    norm_linear,
    pointwise,
    reductions,
)

TYPES = {
    **{torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"},
    **{torch.float64: "fp64", torch.int64: "i64"},
}
found: dict[str, dict[str, int]] = {}
capability = int(sys.argv[1]) if len(sys.argv) > 1 else 90


def compiled(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    """Compile the kernel of a launch instead of running it."""
    names = self.arg_names
    values = dict(zip(names, args, strict=False)) | kwargs
    constants = {p.name: values[p.name] for p in self.params if p.is_constexpr}
    options = {name: value for name, value in values.items() if name not in names}
    signature, attributes = {}, {}
    for i, name in enumerate(names):
        value = values[name]
        if name in constants:
            signature[name] = "constexpr"
        elif isinstance(value, Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:  # as the launcher specialises
            signature[name] = "constexpr"
            constants[name] = 1
        else:
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    key = (
        self.__name__ + " " + " ".join(f"{k}={v}" for k, v in sorted(signature.items()) if v.startswith("*"))
    )
    key += " " + " ".join(f"{k}={v}" for k, v in sorted(constants.items()))
    if key in found:
        return
    source = ASTSource(self, signature, constants, attributes)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    found[key] = {
        "shared": kernel.metadata.shared,
        "code": len(kernel.asm["cubin"]),
        **assembled(kernel.asm["cubin"]),
    }


def assembled(code: bytes) -> dict[str, int]:
    """Return the registers per thread, and the bytes of local memory that hold values that do not fit into them."""
    dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        said = subprocess.run([dump, "-res-usage", file.name], capture_output=True, text=True, check=True)
    used = dict(re.findall(r"(REG|STACK):(\d+)", said.stdout + said.stderr))
    return {"registers": int(used["REG"]), "stack": int(used["STACK"])}


JITFunction.run = compiled


def launches(dtype: torch.dtype, c: int, side: int) -> None:
    """Launch all kernels of a block of c channels at side x side, forward and backward, with weights in fp32."""
    third, hidden = c // 3, 8 * c // 9
    x = torch.zeros(2, side, side, c, dtype=dtype)
    part, head = x[..., third : 2 * third], torch.ones(1)
    ones, many = torch.ones(c), torch.ones(third)

    normed = norm_linear.layer_norm(x, ones, ones, 1e-5)
    norm_linear.norm_gradient(normed[None], x, ones, ones, 1e-5)

    matrix, filters = torch.zeros(3 * third, third), torch.zeros(3 * third, 3, 3)
    out, *kept = attention_branch.attention(part, matrix, filters, head)
    attention_branch.attention_gradient(out, part, matrix, filters, head, *kept)
    attention_branch.attention(part, matrix, filters, head, keep=False)

    mean, sums = reductions.batch_sums(part)
    reductions.batch_sums_gradient(mean, sums, part)
    reductions.update_running(sums, many, many, torch.tensor(0), 0.1)
    weights = torch.zeros(2 * hidden, third), torch.zeros(third, third), torch.zeros(49 * third, third)
    ends = torch.zeros(third, hidden), torch.zeros(third, third)
    for statistics in (sums, None):  # training and eval mode
        given = convolution_branch.Inputs(
            part, mean, statistics, *[many] * 4, head, *weights, *ends, torch.ones(2, dtype=torch.float64)
        )
        out, again = convolution_branch.gated_convolution(given)
        convolution_branch.gated_convolution_gradient(out, given, again)
    convolution_branch.gated_convolution(given, keep=False)

    mlp = torch.zeros(2 * third, third), torch.zeros(third, 2 * third)
    pointwise.channel_mlp_gradient(pointwise.channel_mlp(part, *mlp), part, *mlp)
    scales, project = [torch.ones(1)] * 3, torch.zeros(c, c)
    fused = pointwise.fusion_linear([out] * 3, scales, project, x)
    pointwise.fusion_linear_gradient(fused, [out] * 3, scales, project)
    pointwise.fusion_linear([out, out, part], scales, project, x, mlp)

    ffn = ones, ones, torch.zeros(4 * c, c), torch.zeros(4 * c, 3, 3), torch.zeros(c, 2 * c)
    out, *kept = feed_forward_branch.feed_forward(x, *ffn, True)
    feed_forward_branch.feed_forward_gradient(out, x, *ffn, *kept, True)


if __name__ == "__main__":
    which = sys.argv[2:] or ["bf16 24 128"]
    for word in which:
        name, c, side = word.split()
        launches({v: k for k, v in TYPES.items()}[name], int(c), int(side))
    json.dump(found, sys.stdout, indent=1)
