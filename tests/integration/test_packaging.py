"""The wheel holds the whole package, and its console commands run from where it is installed."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {"src/dirl": "dirl", "callbacks": "dirl/callbacks", "configs": "dirl/configs"}
"""Folder of the tree -> folder of the wheel."""
FILES = "from importlib.resources import files"
SFT = (ROOT / "configs/sft.yaml").read_text().strip()
BUILT = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pyc")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources: setuptools leaves build/ and *.egg-info beside what it builds from."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("src", "callbacks", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=BUILT)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    return tree


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(tree))
    (path,) = folder.glob("dirl-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else; its dependencies are the test's own."""
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--target", str(target), str(wheel))
    return target


def test_every_file_of_the_tree_is_in_the_wheel(wheel: Path) -> None:
    wanted = set(tree_files())
    assert {"dirl/__init__.py", "dirl/callbacks/__init__.py", "dirl/configs/sft.yaml"} <= wanted
    assert wanted - wheel_files(wheel) == set()


def test_the_wheel_holds_nothing_but_the_package_and_its_metadata(wheel: Path) -> None:
    others = {name for name in wheel_files(wheel) - set(tree_files()) if ".dist-info/" not in name}
    assert others == set()


def test_metadata_names_licence_python_and_extras(wheel: Path) -> None:
    about = wheel_metadata(wheel)
    assert about["Name"] == "dirl"
    assert about["License-Expression"] == "Apache-2.0"
    assert about["License-File"] == "LICENSE"
    assert about["Requires-Python"] == ">=3.11"
    assert set(about.get_all("Provides-Extra")) == {"lmdeploy", "lora", "reasoning-gym", "lm-eval", "wandb", "dev"}
    licences = [name for name in wheel_files(wheel) if name.endswith("licenses/LICENSE")]
    assert read(wheel, licences[0]) == (ROOT / "LICENSE").read_text()


def test_the_version_is_that_of_the_package(wheel: Path, installed: Path, tmp_path: Path) -> None:
    shown = python(installed, tmp_path, "import dirl; print(dirl.__version__)")
    assert wheel_metadata(wheel)["Version"] == shown


def test_the_installed_package_is_imported_from_where_it_was_installed(installed: Path, tmp_path: Path) -> None:
    for module in ("dirl", "dirl.callbacks"):
        file = python(installed, tmp_path, f"import {module}; print({module}.__file__)")
        assert Path(file).is_relative_to(installed)


def test_example_configs_are_found_as_resources(installed: Path, tmp_path: Path) -> None:
    assert python(installed, tmp_path, f"{FILES}; print((files('dirl.configs') / 'sft.yaml').read_text())") == SFT


def test_the_installed_package_makes_a_page_of_trajectories(installed: Path, tmp_path: Path) -> None:
    made = {"prompt_id": "q", "sample_index": 0, "prompt_ids": [], "response_ids": [1, 2], "response_length": 2}
    made |= {"step_map": [1, 2], "behaviour_logprobs": [-0.1, -0.2], "finish_reason": "length", "policy_version": 0}
    (tmp_path / "made.jsonl").write_text(json.dumps(made))
    done = command(installed, tmp_path, "lightning", "run", "trace", "made.jsonl")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_installed_package_makes_a_report_of_a_run(installed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "logs" / "version_0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("step,train/loss\n0,1.5\n1,1.25\n")
    done = command(installed, tmp_path, "lightning", "run", "report", "run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_an_editable_install_reads_callbacks_and_configs_in_the_tree(tree: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip("install", "--no-build-isolation", "--target", str(site), "--editable", str(tree))
    code = f"""if True:
        import site; site.addsitedir({str(site)!r})
        from importlib.util import find_spec
        {FILES}
        print(find_spec("dirl").origin, find_spec("dirl.callbacks").origin, sep="\\n")
        print((files("dirl.configs") / "sft.yaml").read_text())
    """
    # -S: without site-packages, where this tree may be installed as well and would be found first
    package, callbacks, config = python(tmp_path, tmp_path, code, "-S").split("\n", 2)
    assert package == str(tree / "src/dirl/__init__.py")
    assert callbacks == str(tree / "callbacks/__init__.py")
    assert config == SFT


def test_dirl_and_lightning_run_show_the_same_commands(installed: Path, tmp_path: Path) -> None:
    helps = [command(installed, tmp_path, *line) for line in (("dirl", "--help"), ("lightning", "run", "--help"))]
    for shown in helps:
        assert shown.returncode == 0, shown.stderr
        for name in ("fit", "rollout", "demo"):
            assert name in shown.stdout


@pytest.mark.skipif(
    any(True for _ in metadata.distributions(name="lightning-sdk")), reason="lightning-sdk is installed and answers"
)
def test_a_command_that_is_not_ours_is_refused_with_the_remedy(installed: Path, tmp_path: Path) -> None:
    refused = command(installed, tmp_path, "lightning", "foo", "--bar")
    assert refused.returncode == 2
    assert refused.stdout == ""
    for part in ("`lightning foo --bar`", "lightning run", "pip install lightning-sdk"):
        assert part in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_command_that_is_not_ours_goes_to_lightning_sdk(installed: Path, tmp_path: Path) -> None:
    sdk = tmp_path / "sdk"
    about = sdk / "lightning_sdk-0.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lightning_sdk\nVersion: 0.0\n")
    (about / "entry_points.txt").write_text(
        "[console_scripts]\nsandbox = nowhere:main\nlightning = scripted_sdk:main\n"
    )
    (sdk / "scripted_sdk.py").write_text("import sys\ndef main():\n    print(sys.argv)\n    return 7\n")
    passed_on = command(installed, tmp_path, "lightning", "login", "run", path=[sdk])
    assert passed_on.stdout.strip() == "['lightning', 'login', 'run']"
    assert passed_on.returncode == 7


def pip(verb: str, *args: str) -> None:
    """Run pip without network and without dependencies."""
    line = [sys.executable, "-m", "pip", verb, "--quiet", "--no-deps", "--no-index", *args]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def command(
    installed: Path, cwd: Path, name: str, *args: str, path: list[Path] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a console script of the installed wheel; `path` is searched before it."""
    return run(installed, cwd, [str(installed / "bin" / name), *args], path or [])


def python(installed: Path, cwd: Path, code: str, *options: str) -> str:
    """What a line of Python prints where the installed wheel is imported."""
    done = run(installed, cwd, [sys.executable, *options, "-c", code], [])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run(installed: Path, cwd: Path, line: list[str], path: list[Path]) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join(str(folder) for folder in [*path, installed])
    env = {**os.environ, "PYTHONPATH": search, "COLUMNS": "120"}
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def tree_files() -> list[str]:
    """Every source file, by the name that it should have in the wheel."""
    return [
        f"{there}/{file.relative_to(ROOT / here).as_posix()}"
        for here, there in SOURCES.items()
        for file in sorted((ROOT / here).rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    ]


def wheel_files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def wheel_metadata(wheel: Path) -> Message:
    (name,) = [name for name in wheel_files(wheel) if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(read(wheel, name))


def read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name).decode()
