"""The machines that kernels are compiled for, and the shape of the register tile on each.

A vector value is always 32 bytes wide; LLVM splits it where registers are narrower. The register tile is
`mr` rows by `nr` columns of float32: as many accumulators as the register file holds beside one row of B.
"""

from __future__ import annotations

import functools
import os
import platform
import sys
from typing import NamedTuple


class Target(NamedTuple):
    """One machine: LLVM's names for it and what the lowering must know.

    `fma`, `half`, `masked`: fused multiply-add, float16 conversion and masked moves are single instructions.
    `abi`: the calling convention, where LLVM does not take it from the triple.
    """

    name: str
    triple: str
    cpu: str
    features: str
    mr: int
    nr: int
    fma: bool
    half: bool
    masked: bool
    abi: str = ""

    @property
    def short(self) -> int:
        """Rows of the short tile, for what is left of a matrix: as few as still hide the latency of an addition."""
        return self.mr * 2 // 3

    @property
    def bytes_at_once(self) -> bool:
        """Whether 32 products of bytes are one instruction."""
        return self.cpu == "x86-64-v3"

    @property
    def unroll(self) -> int:
        """Steps of a product that are written out one after the other. In WebAssembly engines, which see more values
        alive than there are registers, one step at a time is a quarter faster."""
        return 1 if self.triple.startswith("wasm") else 4


#: the environment variable that names a target to plan for in place of this machine's: see minifer/embed
PLAN_FOR = "MINIFER_PLAN_FOR"

_RELAXED, _RV64 = ",+relaxed-simd", "+m,+a,+f,+d,+c"
_WASM = "+simd128,+bulk-memory,+nontrapping-fptoint,+sign-ext"

TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target("x86-64-v3", "x86_64-unknown-linux-gnu", "x86-64-v3", "", 6, 16, True, True, True),
        Target("x86-64-v2", "x86_64-unknown-linux-gnu", "x86-64-v2", "", 4, 8, False, False, False),
        Target("aarch64", "aarch64-unknown-linux-gnu", "generic", "", 8, 12, True, True, False),
        Target("wasm32", "wasm32-unknown-unknown", "generic", _WASM, 4, 8, False, False, False),
        Target("wasm32-relaxed", "wasm32-unknown-unknown", "generic", _WASM + _RELAXED, 4, 8, False, False, False),
        Target("riscv64", "riscv64-unknown-linux-gnu", "generic-rv64", _RV64, 2, 8, True, False, False, "lp64d"),
        Target("x86-64-windows", "x86_64-pc-windows-msvc", "x86-64-v3", "", 6, 16, True, True, True),
        Target("aarch64-macos", "arm64-apple-macosx11.0.0", "apple-m1", "", 8, 12, True, True, False),
        Target("thumbv7em", "thumbv7em-none-unknown-eabihf", "cortex-m7", "", 2, 8, True, False, False),
    )
}

#: what x86-64-v3 adds that minifer's kernels use; the names are those of /proc/cpuinfo
_V3_FLAGS = {"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"}


@functools.cache
def host() -> Target:
    """The target that fits this machine; x86-64 needs AVX2, FMA and F16C for the level v3, else it is v2.

    A process that plans for another machine is told so by the environment; it cannot run kernels.
    """
    if os.environ.get(PLAN_FOR):
        return TARGETS[os.environ[PLAN_FOR]]
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        return TARGETS["x86-64-v3" if _has_v3() else "x86-64-v2"]
    if machine in ("aarch64", "arm64"):
        return TARGETS["aarch64"]
    return TARGETS["wasm32" if sys.platform == "emscripten" else "x86-64-v2"]


def _has_v3() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            for line in info:
                if line.startswith("flags"):
                    return set(line.split()) >= _V3_FLAGS
    except OSError:
        pass
    try:  # systems without /proc: llvmlite asks the CPU itself
        import llvmlite.binding as llvm

        features = llvm.get_host_cpu_features()
        return all(features.get(flag, False) for flag in ("avx2", "fma", "f16c", "bmi", "bmi2", "movbe"))
    except (ImportError, RuntimeError):
        return False
