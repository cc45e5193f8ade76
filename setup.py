"""Builds the C++ core with CMake and installs three packages.

`runtime` is installed as `friendli_runtime` and `policy_db` as `friendli_policy_db`, so that no generic name lands in site-packages.
`pip install -e .` builds the core in place (`runtime/_core.*.so`); the CMake build folder is `build/core`.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Builds the CMake target of an extension in place, then copies it to where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        build_dir = ROOT / "build" / "core"
        configure = ["cmake", "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}"]
        build = ["cmake", "--build", str(build_dir), "--target", "_core"]
        if jobs := os.environ.get("FMO_BUILD_JOBS"):
            build += ["--parallel", jobs]
        subprocess.run(configure, check=True)
        subprocess.run(build, check=True)
        wanted = Path(self.get_ext_fullpath(ext.name)).resolve()
        built = next((ROOT / "runtime").glob("_core.*" + wanted.suffix))
        if wanted != built:
            wanted.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(built, wanted)


def packages_under(folder: str, name: str) -> tuple[list[str], dict[str, str]]:
    """The packages in `folder`, renamed to start with `name`, and where each lives."""
    found = ["", *("." + p for p in find_packages(folder))]
    return [name + p for p in found], {name + p: folder + p.replace(".", "/") for p in found}


runtime_packages, runtime_dirs = packages_under("runtime", "friendli_runtime")
policy_packages, policy_dirs = packages_under("policy_db", "friendli_policy_db") if (ROOT / "policy_db").is_dir() else ([], {})
compile_packages = ["friendli_compile", *("friendli_compile." + p for p in find_packages("friendli_compile"))]

setup(
    packages=compile_packages + runtime_packages + policy_packages,
    package_dir={"friendli_compile": "friendli_compile", **runtime_dirs, **policy_dirs},
    package_data={"friendli_compile.quality": ["probe_text/*.txt"]},
    ext_modules=[Extension("friendli_runtime._core", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    zip_safe=False,
)
