"""The machines that a model can be compiled for, by the names that users give."""

from __future__ import annotations

from dataclasses import dataclass

from minifer.errors import InputError


@dataclass(frozen=True)
class Platform:
    """One value of --target. `levels`: kernel target (minifer.kernels.target) of each CPU level, the default first."""

    name: str
    form: str  # "wasm", "elf" (object and archive), or "object"
    levels: dict[str, str]
    shared: bool = False  # a shared library too
    tested: bool = True  # by this project's own tests, on such a machine or an emulation of it
    suffix: str = ".o"
    runtime: tuple[str, ...] = ()  # how names begin that the compiler's own library brings to every program there


_X86_64 = ("x86-64-v3", "x86-64-v2", "x86-64-v4", "x86-64-amx")

PLATFORMS = {
    p.name: p
    for p in (
        Platform("wasm32", "wasm", {"simd128": "wasm32"}),
        Platform("x86_64-linux", "elf", {v: v for v in _X86_64}, shared=True),
        Platform("aarch64-linux", "elf", {"generic": "aarch64"}, shared=True),
        Platform("riscv64-linux", "elf", {"generic": "riscv64"}, shared=True),
        Platform("x86_64-windows", "object", {"x86-64-v3": "x86-64-windows"}, False, False, ".obj", ("_fltused",)),
        Platform("aarch64-macos", "object", {"apple-m1": "aarch64-macos"}, tested=False),
        Platform("thumbv7em", "elf", {"cortex-m7": "thumbv7em"}, tested=False, runtime=("__aeabi_",)),
    )
}

#: the build beside wasm32 that engines with relaxed SIMD take
RELAXED = "wasm32-relaxed"


def platform_of(name: str) -> Platform:
    """The platform of a name, or InputError with all names."""
    if name not in PLATFORMS:
        raise InputError(f"no target {name!r}: there are {', '.join(PLATFORMS)}")
    return PLATFORMS[name]


def kernel_target(platform: Platform, cpu: str | None) -> str:
    """The kernel target for a CPU level (None: the default), or InputError with all levels."""
    if cpu is None:
        return next(iter(platform.levels.values()))
    if cpu not in platform.levels:
        raise InputError(f"no CPU level {cpu!r} for {platform.name}: there are {', '.join(platform.levels)}")
    return platform.levels[cpu]
