"""The wheel holds what the package needs when it runs away from the repository."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "searchr3"
CACHES = {"__pycache__", ".mypy_cache", ".ruff_cache"}

if not (ROOT / "pyproject.toml").is_file():
    pytest.skip("not in a checkout", allow_module_level=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built without a network or an environment of its own."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    ours = {
        str(path.relative_to(PACKAGE.parent))
        for path in PACKAGE.rglob("*")
        if path.is_file() and not CACHES & {*path.parts}
    }
    assert {"searchr3/py.typed", "searchr3/cli/commands.py"} <= ours
    assert ours <= set(wheel.namelist())


def test_wheel_brings_the_command_and_the_licence_and_no_tests(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "searchr3 = searchr3.cli:main" in wheel.read(entry_points).decode()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert all(name.startswith("searchr3") for name in names)


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
@pytest.mark.parametrize("quick", [True, False])
def test_a_full_benchmark_renews_the_picture_and_a_quick_one_nothing(quick: bool) -> None:
    command = ["make", "--dry-run", "bench", "QUICK=1" if quick else "NAME=quickstart"]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert ("benchmarks/metrics.py" in shown) is quick
    for renewed in ("--picture docs/quickstart.png", "benchmarks/results/", "benchmarks/_result.py"):
        assert (renewed in shown) is not quick, renewed


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_a_full_benchmark_is_named() -> None:
    """All at once would put results without their data in the place of those with them."""
    told = subprocess.run(["make", "--dry-run", "bench"], cwd=ROOT, capture_output=True, text=True)
    assert (
        told.returncode and "name one with NAME=" in told.stderr and "benchmarks/results" not in told.stdout
    )


@pytest.mark.parametrize(("theirs", "disabled"), [(None, True), ("0", False)])
def test_no_library_reports_its_use_unless_the_user_wants_that(theirs: str | None, disabled: bool) -> None:
    """TRL's trainers would, through huggingface_hub; the Python API is covered as the command line is."""
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": theirs} if theirs else {}
    code = "import searchr3, huggingface_hub.constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)"
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.stdout == f"{disabled}\n", result.stderr


def requirements() -> dict[str, Requirement]:
    """What pyproject.toml asks for, extras included, by canonical name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(each for extra in extras for each in extra)]
    return {
        canonicalize_name(each.name): each for each in map(Requirement, wanted) if each.name != "searchr3"
    }


def test_constraints_pin_every_direct_requirement() -> None:
    """Else an install on a fresh machine would get versions that nobody has tried."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[canonicalize_name(name)] = version
    for name, requirement in requirements().items():
        assert name in pins, f"constraints.txt lacks {name}"
        assert requirement.specifier.contains(pins[name]), f"{requirement} refuses the pinned {pins[name]}"


def test_every_library_that_the_package_imports_is_asked_for() -> None:
    """Else it would run only as long as another library happens to bring it."""
    imported = {
        name.split(".")[0]
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [each.name for each in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        )
    }
    homes = packages_distributions()
    known = requirements()
    for name in imported - sys.stdlib_module_names - {"searchr3", "__future__"}:
        assert any(canonicalize_name(home) in known for home in homes.get(name, [name])), (
            f"{name} is not asked for"
        )
