"""Rules of the house that a program can hold."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENGINES = {"torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "stable_diffusion_cpp"}
FORBIDDEN = {
    "common": {"router", "node", "tests"} | ENGINES,
    "router": {"node", "tests"} | ENGINES,
    "node": {"router", "tests"},
}
UNSAFE = {"pickle", "dill", "joblib", "shelve", "marshal"}
MAX_LINES = 500


def _files(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 5, f"found no files in {package}/: this test stopped looking in the right place"
    return files


def _imported(file: Path) -> set[str]:
    names: set[str] = set()
    for each in ast.walk(ast.parse(file.read_text())):
        if isinstance(each, ast.Import):
            names |= {alias.name for alias in each.names}
        elif isinstance(each, ast.ImportFrom):
            assert each.level == 0, f"{file} has a relative import"
            names.add(each.module or "")
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_what_its_layer_allows(package: str):
    # The command line's doctor looks at the device of whoever runs it; its import of torch stands behind a look for it.
    allowed = {ROOT / "common/commands/doctor.py": {"torch"}}
    wrong = {
        str(file.relative_to(ROOT)): sorted(bad)
        for file in _files(package)
        if (bad := (_imported(file) & FORBIDDEN[package]) - allowed.get(file, set()))
    }
    assert not wrong


@pytest.mark.parametrize("package", FORBIDDEN)
def test_nothing_unpickles(package: str):
    loads = re.compile(r"torch\.load\(|allow_pickle=True|yaml\.load\(")
    wrong = [
        str(file.relative_to(ROOT)) for file in _files(package) if _imported(file) & UNSAFE or loads.search(file.read_text())
    ]
    assert not wrong


@pytest.mark.parametrize("package", FORBIDDEN)
def test_every_file_is_of_a_size_that_can_be_read(package: str):
    assert not {str(f): n for f in _files(package) if (n := len(f.read_text().splitlines())) > MAX_LINES}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_dependency_ships_a_package_of_the_same_name(package: str):
    assert set(packages_distributions().get(package, [])) <= {"aquatint"}
    module = sys.modules.get(package) or __import__(package)
    assert Path(str(module.__file__)).parent == ROOT / package
