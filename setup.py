"""Where the packages lie: `dirl` under src/, `dirl.callbacks` and `dirl.configs` at the top of the tree."""

from setuptools import find_namespace_packages, find_packages, setup

# The folders of configs/ hold no code: to setuptools they are namespace packages with data.
folders = find_namespace_packages("configs", exclude=["*__pycache__*"])
configs = ["dirl.configs", *(f"dirl.configs.{name}" for name in folders)]

setup(
    packages=[*find_packages("src"), "dirl.callbacks", *configs],
    package_dir={"dirl": "src/dirl", "dirl.callbacks": "callbacks", "dirl.configs": "configs"},
)
