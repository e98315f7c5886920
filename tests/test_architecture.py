"""The house holds: imports point down, nothing goes round in a circle, modules stay small, one place prints.

The rules are functions from a map of module names to source text to a list of complaints. They are tried
on made-up houses first, so that they are known to be able to complain, and then on this one.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = "modernbert"
MOST_LINES = 450

GROUND = ("errors", "config", "files", "hub", "layout", "process", "runtime", "telemetry")
FLOORS = (
    GROUND,
    ("ops",),
    ("data", "model"),
    ("train", "infer", "retrieve"),
    ("recipes",),
    ("evaluate",),
    ("serve",),
    ("cli",),
    ("__init__", "__main__"),  # the door: it names what lies inside, and nothing inside imports it
)
LEVELS = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
PRINTING_CALLS = {"print", "pprint", "typer.echo", "typer.secho", "click.echo", "click.secho"}
PRINTING_NAMES = {"sys.stdout", "sys.stderr"}

House = dict[str, str]  # module name → source text
Rule = Callable[[House], list[str]]


def read_house() -> House:
    house = {}
    for path in sorted((SOURCE / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        house[name.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return house


def room_of(module: str) -> str:
    """`modernbert.data.masking` is in the room `data`; the package itself is the door, `__init__`."""
    return [*module.split("."), "__init__"][1]


def imports(module: str, house: House) -> Iterator[tuple[str, int]]:
    """Yield each module of the house that `module` imports, wherever in the file, and the line."""
    for node in ast.walk(ast.parse(house[module])):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            targets = [import_target(node, alias.name, house) for alias in node.names]
        else:
            continue
        for target in targets:
            if target.split(".")[0] in (PACKAGE, ""):
                yield target, node.lineno


def import_target(node: ast.ImportFrom, name: str, house: House) -> str:
    """The module that `from MODULE import name` loads: `MODULE.name` if that is one, or else `MODULE`."""
    module = "." * node.level + (node.module or "")
    if module == PACKAGE and name.startswith("__"):
        return "builtins"  # `__version__` is there before anything inside is loaded
    return f"{module}.{name}" if f"{module}.{name}" in house else module


def floors(house: House) -> list[str]:
    """A module imports its own room or a lower floor."""
    complaints = []
    for module in house:
        room = room_of(module)
        if room not in LEVELS:
            complaints.append(f"{module}: the room `{room}` stands on no floor; give it one in FLOORS")
            continue
        for target, line in imports(module, house):
            other = room_of(target)
            if target.startswith("."):
                complaints.append(f"{module}:{line} imports `{target}`; write the whole name, `{PACKAGE}.…`")
            elif other not in LEVELS or (
                other != room and LEVELS[other] >= LEVELS[room] and not {room, other} <= {*GROUND}
            ):
                complaints.append(
                    f"{module}:{line} imports `{target}`; `{room}` may import itself and the floors "
                    "below it; move the shared piece down, or let the caller above pass it in"
                )
    return complaints


def cycles(house: House) -> list[str]:
    """No module imports itself through others. The door is left out: it imports on first use."""
    graph = {
        module: {target for target, _ in imports(module, house) if target not in (module, PACKAGE)}
        for module in house
        if module != PACKAGE
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        return [f"{circle} is a circle of imports; move what two of them share into a module below both"]
    return []


def sizes(house: House) -> list[str]:
    """No module is longer than one sitting."""
    return [
        f"{module} has {length} lines; at most {MOST_LINES}: find its natural seam and make two modules of it"
        for module, length in ((module, len(text.splitlines())) for module, text in house.items())
        if length > MOST_LINES
    ]


def prints(house: House) -> list[str]:
    """Only `telemetry` writes to the terminal."""
    complaints = []
    for module, text in house.items():
        if room_of(module) == "telemetry":
            continue
        for node in ast.walk(ast.parse(text)):
            if found := printing(node):
                complaints.append(
                    f"{module}:{getattr(node, 'lineno', 0)} uses `{found}`; call `{PACKAGE}.telemetry`, "
                    "the one module that writes to the terminal"
                )
    return complaints


def printing(node: ast.AST) -> str | None:
    """Name what `node` would write to the terminal with, if it would."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in PRINTING_CALLS:
        return ast.unparse(node.func)
    if isinstance(node, ast.Attribute) and ast.unparse(node) in PRINTING_NAMES:
        return ast.unparse(node)
    if isinstance(node, ast.Import):
        return next((alias.name for alias in node.names if alias.name.split(".")[0] == "rich"), None)
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rich":
        return node.module
    return None


RULES: tuple[Rule, ...] = (floors, cycles, sizes, prints)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_holds(rule: Rule) -> None:
    house = read_house()
    assert f"{PACKAGE}.errors" in house, f"no module found below {SOURCE}"
    complaints = rule(house)
    assert not complaints, "\n" + "\n".join(complaints)


MADE_UP = {
    "upward": ({"modernbert.ops.attention": "from modernbert.model.layers import Block"}, floors),
    "upward inside a function": (
        {"modernbert.layout": "def late():\n    import modernbert.ops.loss"},
        floors,
    ),
    "upward through the package": (
        {"modernbert.data.loader": "from modernbert import recipes", "modernbert.recipes": ""},
        floors,
    ),
    "peer": ({"modernbert.model.encoder": "from modernbert.data.masking import mask"}, floors),
    "the door": ({"modernbert.infer.fill_mask": "from modernbert import ModernBertModel"}, floors),
    "an unknown room": ({"modernbert.cellar.wine": ""}, floors),
    "an import of an unknown room": ({"modernbert.cli": "import modernbert.cellar"}, floors),
    "a relative import": ({"modernbert.data.loader": "from .packing import pack_rows"}, floors),
    "a circle": (
        {
            "modernbert.data.loader": "from modernbert.data.packing import pack_rows",
            "modernbert.data.packing": "from modernbert.data import corpus",
            "modernbert.data.corpus": "import modernbert.data.loader",
        },
        cycles,
    ),
    "a long module": ({"modernbert.ops.loss": "\n" * (MOST_LINES + 1)}, sizes),
    "print": ({"modernbert.train.loop": "print('step')"}, prints),
    "a stream": ({"modernbert.cli": "import sys\nsys.stderr.write('no')"}, prints),
    "rich": ({"modernbert.recipes.tour": "from rich.console import Console"}, prints),
}


@pytest.mark.parametrize("name", MADE_UP)
def test_a_rule_complains_of_a_made_up_violation(name: str) -> None:
    house, rule = MADE_UP[name]
    assert rule(house)


def test_the_rules_accept_what_the_house_allows() -> None:
    house = {
        "modernbert": "from modernbert.cli import main",
        "modernbert.errors": "import difflib",
        "modernbert.layout": "from modernbert.errors import InputError\nfrom modernbert import __version__",
        "modernbert.telemetry": "import sys\nfrom rich.console import Console\nprint(file=sys.stderr)",
        "modernbert.data.packing": "from modernbert.layout import SequenceLayout",
        "modernbert.data.loader": "import torch\nfrom modernbert.data import packing",
        "modernbert.cli": "from modernbert.data.loader import Loader\nfrom modernbert import telemetry",
        "modernbert.__main__": "from modernbert.cli import main",
    }
    assert [complaint for rule in RULES for complaint in rule(house)] == []


def test_a_complaint_says_where_and_what_to_do() -> None:
    house = {"modernbert.ops.attention": "import torch\nfrom modernbert.train.loop import step"}
    (complaint,) = floors(house)
    assert complaint.startswith("modernbert.ops.attention:2 imports `modernbert.train.loop`")
    assert "move the shared piece down" in complaint
