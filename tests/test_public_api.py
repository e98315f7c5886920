"""Importing the package costs nothing, importing its modules loads no extra, each public name is there."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import modernbert

SOURCE = Path(__file__).parents[1] / "src"
HEAVY = ("torch", "numpy", "transformers", "tokenizers", "pyarrow", "matplotlib", "typer", "rich", "yaml")
EXTRAS = (
    "transformers",
    "pyarrow",
    "datasets",
    "matplotlib",
    "tensorboard",
    "sklearn",
    "scipy",
    "seqeval",
    "optimi",
    "peft",
    "bm25s",
    "Stemmer",
    "pytrec_eval",
    "pytest",
    "hypothesis",
    "triton",
)

KERNELS = ("modernbert.ops.gpu.", "modernbert.infer.gpu.kernel_passes")
"""Import Triton, which comes with torch for CUDA alone; no other module imports them before it is needed."""

LOADED_BY = """
import importlib, json, sys
watched, modules = json.loads(sys.argv[1])
loaded = {}
for module in modules:
    importlib.import_module(module)
    for name in watched:
        if name in sys.modules:
            loaded.setdefault(name, module)
print(json.dumps(loaded))
"""


def loaded_by(modules: list[str], watched: tuple[str, ...]) -> dict[str, str]:
    """Import `modules` in a fresh interpreter; say which of them first loaded each of `watched`."""
    code = [sys.executable, "-c", LOADED_BY, json.dumps([watched, modules])]
    done = subprocess.run(code, cwd=SOURCE, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def all_modules() -> list[str]:
    paths = sorted((SOURCE / "modernbert").rglob("*.py"))
    names = [".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names]


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by(["modernbert"], HEAVY) == {}


def test_importing_every_module_loads_no_extra() -> None:
    modules = all_modules()
    assert "modernbert.errors" in modules
    modules = [name for name in modules if not name.startswith(KERNELS)]
    assert loaded_by(modules, EXTRAS) == {}, "import an extra inside the function that needs it"


def test_a_heavy_import_is_noticed() -> None:
    assert loaded_by(["modernbert", "yaml"], HEAVY) == {"yaml": "yaml"}


@pytest.mark.parametrize("name", modernbert.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(modernbert, name).__name__ == name


def test_public_names_are_listed_and_typed_alike() -> None:
    """What the type checker reads, what `__all__` says and what loads on first use are the same names."""
    tree = ast.parse(Path(modernbert.__file__).read_text(encoding="utf-8"))
    (block,) = [
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    typed = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == modernbert._MODULES
    assert sorted(typed) == modernbert.__all__
    assert set(modernbert.__all__) <= set(dir(modernbert))


def test_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no public name `ModernBert`; see"):
        modernbert.ModernBert  # noqa: B018


def test_version_is_there() -> None:
    assert modernbert.__version__[0].isdigit()
