"""The command `configs`: the example configs, for whoever has installed the package."""

import shutil
from importlib.resources import files
from pathlib import Path

from dirl.outputs import check_new_folder


def configs(folder: str = "configs", overwrite: bool = False) -> None:
    """Copy the example configs into a folder.

    Args:
        folder: where to.
        overwrite: configs of the same names in an existing folder are replaced.
    """
    target = Path(folder)
    check_new_folder(target, "folder", overwrite)
    ignore = shutil.ignore_patterns("__pycache__", "*.py")
    shutil.copytree(str(files("dirl.configs")), target, ignore=ignore, dirs_exist_ok=True)
    print(f"configs copied to {target}")
