"""The part of the build that pyproject.toml cannot say: the CPU kernels, compiled for the machine that installs them.

MINI_INFER_MARCH names another processor (an image or a wheel runs elsewhere). Without a C++ compiler the installation
goes on, and the torch references run instead.
"""

import os

from setuptools import Extension, setup

MARCH = os.environ.get("MINI_INFER_MARCH", "native")

setup(ext_modules=[
    Extension(
        "mini_infer.ops._native", ["mini_infer/ops/native.cpp"], language="c++", optional=True,
        extra_compile_args=["-O3", f"-march={MARCH}", "-std=c++17", "-fopenmp-simd", "-fno-math-errno",
                            "-fno-trapping-math"],
    ),
])
