# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compile Triton kernels for an H100 as they would be launched: no GPU is needed."""

import re
import subprocess
import tempfile
from dataclasses import dataclass

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64"}
LAUNCH_OPTIONS = ("num_warps", "num_stages")
SHARED_MEMORY = 227 * 1024  # of one program on an H100


@dataclass
class Compiled:
    """What one launch would run: PTX, bytes of shared memory and of spilled registers."""

    ptx: str
    shared: int
    spills: int

    @property
    def tensor_core_products(self) -> int:
        return self.ptx.count("wgmma.mma_async")


class Recorder:
    """Stands in for a kernel and keeps the arguments of its launches."""

    def __init__(self, kernel):
        self.kernel, self.launches = kernel, []

    def __getitem__(self, grid):
        assert all(0 < size < 2**31 for size in grid) and all(size < 2**16 for size in grid[1:])
        return lambda *arguments, **named: self.launches.append((arguments, named))


def compile_launch(kernel, arguments, named) -> Compiled:
    """Compile with the specialisation that Triton's launcher would choose."""
    options = {name: value for name, value in named.items() if name in LAUNCH_OPTIONS}
    named = {name: value for name, value in named.items() if name not in LAUNCH_OPTIONS}
    values = dict(zip(kernel.arg_names, arguments, strict=False)) | named
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        value, place = values[name], (index,)
        if isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
            attributes[place] = [["tt.divisibility", 16]]
        elif kernel.params[index].is_constexpr or value == 1:
            signature[name], constants[place] = "constexpr", value
        else:
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[place] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    ptx = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", file.name]
        done = subprocess.run(
            [*command, "-o", "/dev/null"], capture_output=True, text=True, check=True
        )
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
    assert spills, done.stderr
    return Compiled(ptx, compiled.metadata.shared, sum(map(int, spills)))


def compile_all(monkeypatch, module, names, call) -> dict[str, list[Compiled]]:
    """Compile every launch that `call` makes of the kernels with these names in a module."""
    recorders = {name: Recorder(getattr(module, name)) for name in names}
    for name, recorder in recorders.items():
        monkeypatch.setattr(module, name, recorder)
    call()
    return {
        name: [compile_launch(recorder.kernel, *launch) for launch in recorder.launches]
        for name, recorder in recorders.items()
    }
