"""Builds the kernels with the package, for the wheel and for an editable install; `python hatch_build.py` builds them alone.

Each instruction set has a shared library of its own beside the sources: functions that the linker shares could otherwise
bring one set's instructions into another's code. Without a compiler the package is built without kernels, and PyTorch
computes everything. `LUMIGLUE_BUILD_KERNELS=0` does so on purpose; `LUMIGLUE_BUILD_KERNELS=1` makes a failure an error.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "src" / "lumiglue" / "matcher" / "ops" / "native"
SWITCH = "LUMIGLUE_BUILD_KERNELS"
CPP = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
# Flags and bytes of a register.
X86 = {"avx2": (["-mavx2", "-mfma"], 32), "avx512": ([*AVX512, "-mfma", "-mprefer-vector-width=512"], 64)}
ARM = {"neon": ([], 16)}
SETS = {"x86_64": X86, "amd64": X86, "aarch64": ARM, "arm64": ARM}
# OpenMP's functions are found at run time, in the library that PyTorch has loaded.
AMX = ["-O3", "-fPIC", "-fopenmp", "-fno-strict-aliasing", *AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"]


def build() -> list[Path]:
    """Builds what is older than its sources. Returns the libraries; none without a compiler or for another processor.

    Raises:
        RuntimeError: The compiler fails.
    """
    compiler = _compiler("CXX", "c++", "g++", "clang++")
    sources = [path for path in FOLDER.iterdir() if path.suffix in (".cpp", ".h", ".c")]
    newest = max(path.stat().st_mtime for path in (*sources, Path(__file__)))
    libraries = []
    for name, (flags, size) in SETS.get(platform.machine().lower(), {}).items():
        library = FOLDER / f"{name}.so"
        libraries.append(library)
        if not library.exists() or library.stat().st_mtime < newest:
            defines = [f"-DLUMIGLUE_ISA={name}", f"-DLUMIGLUE_BYTES={size}"]
            parts = [str(FOLDER / "layer.cpp"), str(FOLDER / "pool.cpp")]
            static = ["-static-libstdc++", "-static-libgcc"] if sys.platform == "linux" else []
            _run([*compiler, *CPP, *flags, *defines, "-shared", "-pthread", *static, *parts], library)
    if sys.platform == "linux" and platform.machine() == "x86_64":
        library = FOLDER / "amx.so"
        libraries.append(library)
        if not library.exists() or library.stat().st_mtime < newest:
            c = _compiler("CC", "cc", "gcc", "clang")
            parts = [(FOLDER / name, library.with_name(f"{name}.o")) for name in ("amx.c", "amx_backward.c")]
            for source, compiled in parts:
                _run([*c, *AMX, "-c", str(source)], compiled)
            _run([*c, "-shared", *(str(compiled) for _, compiled in parts), "-lm"], library)
            for _, compiled in parts:
                compiled.unlink()
    return libraries


def _compiler(variable: str, *names: str) -> list[str]:
    if given := shlex.split(os.environ.get(variable, "")):
        return given
    path = next((path for name in names if (path := shutil.which(name))), None)
    if path is None:
        raise RuntimeError(f"there is no compiler (looked for {', '.join(names)}; {variable} is not set)")
    return [path]


def _run(command: list[str], output: Path) -> None:
    """Writes the output whole or not at all."""
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        run = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(f"{' '.join(command)} fails:\n{run.stderr.strip() or 'no message'}")
        unfinished.replace(output)
    except OSError as error:
        raise RuntimeError(f"{command[0]}: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # built alone, without hatchling
    BuildHookInterface = object


class Kernels(BuildHookInterface):
    """Hatchling's hook: the wheel is that of a platform if it has kernels, and pure Python if not."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the wheel is put together; version: "standard" or "editable"."""
        wanted = os.environ.get(SWITCH, "")
        if self.target_name != "wheel" or wanted == "0":
            return
        try:
            libraries = build()
        except RuntimeError as error:
            if wanted == "1":
                raise
            self.app.display_warning(f"Lumiglue is built without its kernels, PyTorch computes everything: {error}")
            return
        if libraries and version == "standard":
            build_data["artifacts"] += [f"/{library.relative_to(self.root).as_posix()}" for library in libraries]
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


if __name__ == "__main__":
    print("\n".join(str(library) for library in build()) or "no kernels for this processor")  # noqa: T201
