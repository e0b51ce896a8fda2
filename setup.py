"""Installs the libraries `sag` and `evaluations`; the scripts and configs are run from the checkout."""

from setuptools import find_packages, setup

setup(
    name="sag",
    version="0.1.0",
    description="Self-Attention Guidance and its companions for pretrained diffusion models",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["sag", "sag.*", "evaluations"]),
    package_data={
        "sag": ["py.typed", "weights/*.safetensors", "weights/README.md"],
        "evaluations": ["weights/*.safetensors", "weights/*.npz"],
    },
    install_requires=[
        "torch>=2.6",
        "torchvision",
        "numpy",
        "scipy",
        "blobfile",
        "mpi4py",
        "tqdm",
        "torch-fidelity",
        "hydra-core>=1.3",
        "safetensors",
        "pillow",
        "matplotlib",
        "filelock",
        "vl-convert-python",
    ],
    extras_require={
        "test": [
            "pytest",
            "pytest-xdist",
            "ruff",
            "mypy",
            "types-tqdm",
            "scipy-stubs",
            "mpich",
            "hydra-submitit-launcher",
            "gcp-storage-emulator",
            "playwright",
            "hydra-optuna-sweeper",
        ],
        "mpi": ["mpich"],
        "slurm": ["hydra-submitit-launcher"],
        "sweep": ["hydra-optuna-sweeper"],
    },
)
