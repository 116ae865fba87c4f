"""The machines that kernels are compiled for, and the shape of the register tile on each.

A vector value is 32 bytes wide, or 64 where registers are; LLVM splits it where they are narrower. The register tile
is `mr` rows by `nr` columns of float32: as many accumulators as the register file holds beside one row of B.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from typing import NamedTuple


class Target(NamedTuple):
    """One machine: LLVM's names for it and what the lowering must know.

    `fma`, `half`, `masked`: fused multiply-add, float16 conversion and masked moves are single instructions.
    `abi`: the calling convention, where LLVM does not take it from the triple. `vector`: bytes of a natural vector.
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
    vector: int = 32

    @property
    def short(self) -> int:
        """Rows of the short tile, for what is left of a matrix: as few as still hide the latency of an addition."""
        return self.mr * 2 // 3

    @property
    def pair(self) -> int:
        """Floats of two natural vectors."""
        return self.vector // 2

    @property
    def block(self) -> int:
        """Floats that take a quarter of the second-level cache, which is larger where vectors are wide."""
        return 1 << (17 if self.vector == 64 else 15)

    @property
    def bytes_at_once(self) -> bool:
        """Whether 32 products of bytes are one instruction."""
        return self.cpu in ("x86-64-v3", "x86-64-v4")

    @property
    def exact_bytes(self) -> bool:
        """Whether that instruction adds four products of bytes to 32 bits, so that no sum of 16 bits can saturate."""
        return _VNNI in self.features.split(",")

    @property
    def matrix(self) -> bool:
        """Whether there are matrix registers: two blocks of 16 x 32 bfloat16, or 16 x 64 bytes, are multiplied by one
        instruction."""
        return self.features == _AMX

    @property
    def sum_rows(self) -> int:
        """Rows of bytes that are multiplied at once: a block of the matrix registers, or a tile."""
        return 32 if self.matrix else self.mr

    @property
    def unroll(self) -> int:
        """Steps of a product that are written out one after the other. In WebAssembly engines, which see more values
        alive than there are registers, one step at a time is a quarter faster. Where there are 32 registers LLVM would
        load the panels of all steps before the first, and spill."""
        return 1 if self.triple.startswith("wasm") or self.vector == 64 else 4


#: the environment variable that names a target to plan for in place of this machine's: see minifer/embed
PLAN_FOR = "MINIFER_PLAN_FOR"

_VNNI, _AMX = "+avx512vnni", "+avx512vnni,+amx-tile,+amx-bf16,+amx-int8"
_RELAXED, _RV64 = ",+relaxed-simd", "+m,+a,+f,+d,+c"
_WASM = "+simd128,+bulk-memory,+nontrapping-fptoint,+sign-ext"

TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target("x86-64-amx", "x86_64-unknown-linux-gnu", "x86-64-v4", _AMX, 12, 32, True, True, True, vector=64),
        Target("x86-64-v4", "x86_64-unknown-linux-gnu", "x86-64-v4", _VNNI, 12, 32, True, True, True, vector=64),
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
#: and what x86-64-v4 does, with the products of bytes that all such machines have but the first
_V4_FLAGS = _V3_FLAGS | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"}
_AMX_FLAGS = _V4_FLAGS | {"amx_tile", "amx_bf16", "amx_int8"}
_LEVELS = {"amx": _AMX_FLAGS, "v4": _V4_FLAGS, "v3": _V3_FLAGS}
#: Linux gives a process the state of matrix registers if it asks: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
TILE_DATA = (158, 0x1023, 18)


@functools.cache
def host() -> Target:
    """The target that fits this machine: of x86-64 the highest level whose instructions it has.

    A process that plans for another machine is told so by the environment; it cannot run kernels.
    """
    if os.environ.get(PLAN_FOR):
        return TARGETS[os.environ[PLAN_FOR]]
    machine = _machine()
    if machine in ("x86_64", "amd64"):
        flags = _flags()
        if flags >= _AMX_FLAGS and not _matrix_allowed():
            flags -= _AMX_FLAGS - _V4_FLAGS
        return TARGETS[next((f"x86-64-{name}" for name, needs in _LEVELS.items() if flags >= needs), "x86-64-v2")]
    if machine in ("aarch64", "arm64"):
        return TARGETS["aarch64"]
    return TARGETS["wasm32" if sys.platform == "emscripten" else "x86-64-v2"]


def _machine() -> str:
    if hasattr(os, "uname"):
        return os.uname().machine.lower()
    import platform  # takes long to import

    return platform.machine().lower()


def _matrix_allowed() -> bool:
    """Ask the system for the matrix registers, for all threads of this process."""
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).syscall(*TILE_DATA) == 0)
    except (OSError, AttributeError):
        return False


def _flags() -> set[str]:
    """What the CPU has, by the names of /proc/cpuinfo."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            for line in info:
                if line.startswith("flags"):
                    return set(line.split())
    except OSError:
        pass
    try:  # systems without /proc: llvmlite asks the CPU itself
        import llvmlite.binding as llvm

        found = {name for name, present in llvm.get_host_cpu_features().items() if present}
    except (ImportError, RuntimeError):
        return set()
    return found | {theirs for ours, theirs in (("bmi", "bmi1"), ("avx512vnni", "avx512_vnni")) if ours in found}
