"""Builds the engine: each ``src/pyhyve/vmm/soft/NAME.py`` with a ``NAME.pxd`` beside it becomes an extension module.

The modules are Python in Cython's pure mode; the ``.pxd`` holds the C types. Only what changed is translated and
compiled again: Cython follows the ``cimport`` graph, the C compiler is run where the generated C is newer.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ENGINE = Path("src/pyhyve/vmm/soft")
JOBS = 2

# The compiler must not turn loops into calls of library functions.
COMPILE_ARGS = ["-O2", "-fno-strict-aliasing", "-fno-tree-loop-distribute-patterns", "-fno-builtin", "-Wno-unused"]
# The guest's vector and x87 state stays in the host's registers while engine code runs, so that code touches general
# registers only. The door of the engine, where Python is met, runs when that state has been put away.
GENERAL_REGISTERS = "-mgeneral-regs-only"
DOOR = "engine"
DIRECTIVES = {
    "language_level": 3,
    "cdivision": True,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
}


def engine_modules() -> list[Path]:
    return sorted(source for source in ENGINE.glob("*.py") if source.with_suffix(".pxd").exists())


def compiler() -> str | None:
    """The C compiler that distutils will run: ``$CC``, else ``cc`` or ``gcc``."""
    wanted = os.environ.get("CC", "").split()
    for name in [wanted[0]] if wanted else ["cc", "gcc"]:
        if shutil.which(name):
            return name
    return None


class BuildExt(build_ext):
    """``build_ext`` that compiles in parallel and says what it compiles."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or JOBS

    def build_extensions(self) -> None:
        compile_sources = self.compiler.compile

        def compile_aloud(sources: list[str], *args: object, **options: object) -> list[str]:
            print(f"build:   compiling {' '.join(sources)}", flush=True)
            objects: list[str] = compile_sources(sources, *args, **options)
            return objects

        self.compiler.compile = compile_aloud
        super().build_extensions()


def extensions() -> list[Extension]:
    """The engine's modules, translated to C where that is out of date."""
    sources = engine_modules()
    if not sources or os.environ.get("PYHYVE_SKIP_ENGINE"):
        return []
    if compiler() is None:
        sys.exit("pyhyve: no C compiler: install gcc (on Debian: apt-get install gcc libc6-dev), or name one in CC")
    from Cython.Build import cythonize

    modules = [
        Extension(
            ".".join(source.relative_to("src").with_suffix("").parts),
            [str(source)],
            extra_compile_args=COMPILE_ARGS if source.stem == DOOR else [*COMPILE_ARGS, GENERAL_REGISTERS],
        )
        for source in sources
    ]
    built: list[Extension] = cythonize(
        modules,
        compiler_directives=DIRECTIVES,
        include_path=["src"],
        nthreads=JOBS,
        quiet=True,
        show_all_warnings=False,
    )
    return built


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExt})
