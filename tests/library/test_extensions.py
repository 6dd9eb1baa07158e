"""Hamilton's extensions are loaded when they are needed, each in a new interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"sklearn", "matplotlib", "dask"}

DATAFLOW = """
from hamilton.function_modifiers import extract_columns, load_from, save_to, source
import pandas as pd

@load_from.csv(path=source("path"))
def raw(table: pd.DataFrame) -> pd.DataFrame:
    return table

@extract_columns("a")
def table(raw: pd.DataFrame) -> pd.DataFrame:
    return raw * 2

@save_to.csv(path=source("written"), output_name_="saved")
def copied(table: pd.DataFrame) -> pd.DataFrame:
    return table
"""

LAZILY = "from prefect_hamilton import extensions; extensions.load_lazily()"


def python(*lines: str, folder: Path | None = None, **variables: str) -> str:
    """The output of a program."""
    inherited = {name: value for name, value in os.environ.items() if "AUTOLOAD" not in name}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=folder,
        env=inherited | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def heavy(*lines: str, **variables: str) -> set[str]:
    """The large libraries that a program imports."""
    said = python(*lines, "import sys; print(*sys.modules)", **variables)
    return HEAVY & set(said.split())


def test_hamilton_imports_no_library_that_the_flow_does_not_use() -> None:
    driver = "from hamilton import driver; driver.Builder().build()"
    assert heavy(LAZILY, driver) == set()
    assert heavy(driver) == HEAVY


@pytest.mark.parametrize(("value", "loaded"), [("1", HEAVY), ("0", set())])
def test_hamiltons_own_variable_has_precedence(value: str, loaded: set[str]) -> None:
    """0 turns extensions off, 1 loads all: neither is loaded when it is needed."""
    programs = (
        LAZILY,
        "from hamilton import driver, registry; print(type(registry.LOADER_REGISTRY))",
    )
    assert heavy(*programs, HAMILTON_AUTOLOAD_EXTENSIONS=value) == loaded


def test_a_dataflow_finds_the_extension_of_a_library_that_it_imports(tmp_path: Path) -> None:
    """Decorators of loaders, savers and columns, and materializers, of pandas."""
    (tmp_path / "frames.py").write_text(DATAFLOW)
    (tmp_path / "in.csv").write_text("a,b\n1,2\n")
    program = (
        "from hamilton import driver",
        "from hamilton.io.materialization import to",
        "import frames",
        "built = driver.Builder().with_modules(frames).build()",
        "inputs = {'path': 'in.csv', 'written': 'out.csv'}",
        "found = built.execute(['a', 'saved'], inputs=inputs)",
        "save = to.json(id='json', dependencies=['table'], filepath_or_buffer='out.json')",
        "built.materialize(save, inputs=inputs)",
        "print(found['a'].tolist())",
    )
    assert python(LAZILY, *program, folder=tmp_path) == "[2]"
    assert "2,4" in (tmp_path / "out.csv").read_text()
    assert (tmp_path / "out.json").read_text() == '{"a":{"0":2},"b":{"0":4}}'


def test_a_dataflow_finds_a_saver_of_a_library_that_it_does_not_import(tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text("def table() -> dict:\n    return {1: 2}\n")
    program = (
        "import sys",
        "from hamilton import driver",
        "from hamilton.io.materialization import to",
        "import words",
        "built = driver.Builder().with_modules(words).build()",
        "assert 'yaml' not in sys.modules",
        "built.materialize(to.yaml(id='yaml', dependencies=['table'], path='out.yaml'))",
    )
    python(LAZILY, *program, folder=tmp_path)
    assert (tmp_path / "out.yaml").read_text() == "1: 2\n"


def test_the_same_adapters_are_found_as_if_hamilton_had_loaded_all() -> None:
    program = (
        "from hamilton import driver, registry",
        "import matplotlib.pyplot, numpy, pandas, pydantic, sklearn, yaml, dask.dataframe",
        "for found in (registry.LOADER_REGISTRY, registry.SAVER_REGISTRY):",
        "    print({name: sorted(map(str, each)) for name, each in sorted(found.items())})",
        "print(sorted(registry.get_registered_dataframe_types()))",
    )
    assert python(LAZILY, *program) == python(*program)
