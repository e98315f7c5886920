"""Real text that lies on every machine with Python: the language's own documentation."""

from __future__ import annotations

import ast
import inspect
import json
import pydoc_data.topics
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from modernbert.files import atomic_file

# Not prose about Python, or not part of what every installation has.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "config"}


def write_text(folder: Path) -> Path:
    """Write the documents as JSON lines, one a line, and return the file; an existing one is left as it is.

    The documents are the topics of `help()` and, for each module of the standard library, its docstrings.
    """
    path = folder / "python_documentation.jsonl"
    if not path.exists():
        with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for text in documents():
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return path


def documents() -> Iterator[str]:
    """Yield the documents in an order that depends on the installation alone."""
    for name in sorted(pydoc_data.topics.topics):
        yield pydoc_data.topics.topics[name].strip()
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if not _LEFT_OUT & set(path.relative_to(library).parts):
            text = _docstrings(path)
            if text:
                yield text


def _docstrings(path: Path) -> str:
    """Join all docstrings of a module, in the order of its source."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ""  # a file of another Python, or made to be broken
    nodes = (
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    )
    found = [(node.body[0].lineno, text) for node in nodes if (text := _docstring(node))]
    return "\n\n".join(text for _, text in sorted(found))


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    text = ast.get_docstring(node, clean=False)
    return inspect.cleandoc(text).encode("utf-8", "ignore").decode("utf-8") if text else ""
