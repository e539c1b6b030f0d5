"""The drawing kernels compiled for an H100 on a machine that has none: `python -m` this file."""

import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from dirl.diffusion import drawing_kernels as kernels

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {
    "logits": "*bf16",
    "wanted": "*i1",
    "banned": "*i64",
    "largest": "*fp32",
    "masses": "*fp64",
    "places": "*i32",
    "seeds": "*i64",
    "positions": "*i64",
    "forwards": "*i64",
    "tokens": "*i64",
    "logprobs": "*fp32",
    "confidence": "*fp32",
    "finite": "*i1",
    "temperature": "fp32",
}
"""Of a kernel's arguments; i32 where nothing is said."""


def compiled(kernel: triton.JITFunction, **constants: object) -> CompiledKernel:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else TYPES.get(name, "i32") for name in names}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
    return triton.compile(source, target=HOPPER, options={"num_warps": 8})


def spilled(kernel: CompiledKernel) -> list[int]:
    """Bytes, as ptxas counts them."""
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "kernel.ptx"
        text.write_text(kernel.asm["ptx"])
        command = [ptxas, "-v", "-arch=sm_90a", text, "-o", Path(folder) / "kernel.o"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return [int(count) for count in re.findall(r"(\d+) bytes spill", told)]


def main() -> None:
    size = {"SIZE": kernels.TILE}
    made = {"masses": compiled(kernels.tile_masses, SOME=True, **size)}
    for greedy, best in ((False, False), (False, True), (True, False)):
        chosen = {"GREEDY": greedy, "BEST": best, "TILES": 64}
        made[str(chosen)] = compiled(kernels.draw_tokens, SOME=True, **chosen, **size)
    for name, kernel in made.items():
        assert kernel.asm["cubin"] and spilled(kernel) == [0, 0], name
        print(name, "without a spilled register")


if __name__ == "__main__":
    main()
