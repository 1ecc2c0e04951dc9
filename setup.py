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

# The guest's vector and x87 state stays in the host's registers while engine code runs, so the compiler must touch
# general registers only, and must not turn loops into calls of library functions that would not obey.
COMPILE_ARGS = [
    "-O2",
    "-mgeneral-regs-only",
    "-fno-strict-aliasing",
    "-fno-tree-loop-distribute-patterns",
    "-fno-builtin",
]
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
    """``build_ext`` that looks for a compiler first, compiles in parallel and says what it compiles."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or JOBS

    def build_extension(self, ext: Extension) -> None:
        if compiler() is None:
            sys.exit("pyhyve: no C compiler: install gcc (on Debian: apt-get install gcc libc6-dev), or name one in CC")
        super().build_extension(ext)


def extensions() -> list[Extension]:
    sources = engine_modules()
    if not sources:
        return []
    from Cython.Build import cythonize

    modules = [
        Extension(
            ".".join(source.relative_to("src").with_suffix("").parts),
            [str(source)],
            extra_compile_args=COMPILE_ARGS,
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
