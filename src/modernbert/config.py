"""Typed run configuration: frozen dataclasses are the schema, one YAML file is a run.

Strict by design: an unknown, missing or ill-typed key names its dotted path and the nearest
valid one. What `dump` writes, `build` reads back as the same object.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from modernbert.errors import ConfigError, did_you_mean

Schema = TypeVar("Schema")
Tree = dict[str, Any]


def load(path: Path) -> Tree:
    """Read a YAML file into plain values.

    Raises:
        ConfigError: The file is missing, is not YAML, has a key twice or is not a mapping.
    """
    try:
        tree = _read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"`{path}` does not exist; give the path of a YAML run file") from None
    except OSError as error:
        raise ConfigError(
            f"`{path}` could not be read ({error.strerror}); give the path of a YAML run file"
        ) from None
    except (yaml.YAMLError, ValueError) as error:  # the latter for wrong dates and bytes that are no UTF-8
        raise ConfigError(f"`{path}` is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"`{path}` holds {_kind(tree)}; it must hold a mapping of settings")
    return tree


def override(tree: Mapping[str, Any], assignments: Iterable[str]) -> Tree:
    """Apply `a.b=c` assignments.

    Values are YAML. `phases.0.tokens=5` reaches into a list, `phases.decay.tokens=5` to its item so named.
    """
    result: Any = _copy(tree)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not all(path.split(".")):
            raise ConfigError(f"`{assignment}` is not an override; it must read `path.to.key=value`")
        try:
            value = _read_yaml(text)
        except (yaml.YAMLError, ValueError):
            raise ConfigError(f"`{text}`, the value of `{path}`, is not valid YAML; quote it") from None
        _assign(result, path.split("."), value)
    return dict(result)


def build(schema: type[Schema], tree: Mapping[str, Any], where: str = "") -> Schema:
    """Make a `schema` from plain values.

    A schema inside it that has a classmethod `from_tree(tree, where)` builds itself.

    Args:
        schema: A dataclass.
        tree: What YAML gave.
        where: Dotted path of `tree` in the whole run, for messages.

    Raises:
        ConfigError: An unknown, missing or ill-typed key, or a value that the schema refuses.
    """
    hints = get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema) if field.init}  # type: ignore[arg-type]
    for key in tree:
        if key not in fields:
            raise ConfigError(f"unknown key `{_join(where, key)}`{_near(where, str(key), fields)}")
    values = {}
    for name, field in fields.items():
        if name in tree:
            values[name] = _convert(hints[name], tree[name], _join(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"`{_join(where, name)}` is missing; it must be {_describe(hints[name])}")
    try:
        return schema(**values)
    except ConfigError as error:
        if not where:
            raise
        raise ConfigError(f"in `{where}`: {error}") from None


def to_tree(value: Any) -> Any:
    """Turn a schema object back into plain values that YAML and JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_tree(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(key): to_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_tree(item) for item in value]
    return value


def dump(value: Any) -> str:
    """Write a schema object as YAML."""
    return yaml.safe_dump(to_tree(value), sort_keys=False, allow_unicode=True)


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Name each dotted path at which two trees differ, with both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = list(dict.fromkeys([*old, *new]))
        return [line for key in keys for line in differences(old.get(key), new.get(key), _join(where, key))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for i, pair in enumerate(zip(old, new)) for line in differences(*pair, _join(where, i))]
    return [] if old == new else [f"`{where}`: {old!r} → {new!r}"]


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check `value` against a type hint, and turn lists into tuples and mappings into dataclasses."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(get_args(hint), value, where)
    if origin is Literal:
        if value in get_args(hint) and not isinstance(value, bool):
            return value
        choices = [str(choice) for choice in get_args(hint)]
        raise ConfigError(f"`{where}` is {value!r}{did_you_mean(str(value), choices)}")
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(get_args(hint)[0], item, _join(where, i)) for i, item in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        item_hint = get_args(hint)[1]
        return {str(key): _convert(item_hint, item, _join(where, key)) for key, item in value.items()}
    if isinstance(hint, type) and hasattr(hint, "from_tree") and isinstance(value, Mapping):
        return hint.from_tree(value, where)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return build(hint, value, where)  # type: ignore[arg-type]
    return _convert_plain(hint, value, where)


def _convert_union(hints: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in hints:
        return None
    options = [hint for hint in hints if hint is not type(None)]
    if len(options) == 1:
        return _convert(options[0], value, where)
    for option in options:
        try:
            return _convert(option, value, where)
        except ConfigError:
            continue
    expected = " or ".join(_describe(option) for option in options)
    raise ConfigError(f"`{where}` is {_kind(value)}; it must be {expected}")


def _convert_plain(hint: Any, value: Any, where: str) -> Any:
    """Check a number, string or boolean."""
    if hint in (int, float):
        number = _number(value)
        if number is not None and hint is float:
            return float(number)
        if number is not None and number == int(number):
            return int(number)
    elif (
        isinstance(hint, type)
        and isinstance(value, hint)
        and not (hint is not bool and isinstance(value, bool))
    ):
        return value
    raise ConfigError(f"`{where}` is {_kind(value)}; it must be {_describe(hint)}")


def _number(value: Any) -> int | float | None:
    """Return a finite number, also one that YAML 1.1 reads as a string: `1e-5`, `5e9`."""
    if isinstance(value, bool) or not isinstance(value, str | float | int):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    return value if isinstance(value, int) else number


def _describe(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(repr(arg) for arg in args)
    if origin is tuple:
        return f"a list, each item {_describe(args[0])}"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "a mapping"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return repr(value)


def _near(where: str, key: str, fields: Iterable[str]) -> str:
    hint = did_you_mean(key, fields)
    return hint.replace("mean `", f"mean `{where}.") if where and "mean `" in hint else hint


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _copy(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _copy(value) for key, value in tree.items()}
    return [_copy(value) for value in tree] if isinstance(tree, list | tuple) else tree


def _assign(node: Any, path: list[str], value: Any, depth: int = 0) -> None:
    """Set `value` at `path[depth:]` below `node`, in mappings and lists, making mappings on the way."""
    key: Any = path[depth]
    if isinstance(node, list):
        key = _place(node, key, path)
    elif not isinstance(node, dict):
        above = ".".join(path[:depth])
        raise ConfigError(
            f"`{'.'.join(path)}` goes below `{above}`, which is {node!r}; it must be a mapping; "
            "override it as a whole"
        )
    if depth + 1 == len(path):
        node[key] = value
        return
    if isinstance(node, dict) and node.get(key) is None:
        node[key] = {}
    _assign(node[key], path, value, depth + 1)


def _place(items: list[Any], key: str, path: list[str]) -> int:
    """Return which item of a list a key means: by its number, or by its `name`."""
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if key in names:
        return names.index(key)
    if key.isdecimal() and int(key) < len(items):
        return int(key)
    known = [name for name in names if isinstance(name, str)]
    hint = did_you_mean(key, known) if known and not key.isdecimal() else "; count from 0"
    raise ConfigError(f"`{'.'.join(path)}` names item `{key}` of a list of {len(items)}{hint}")


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, where plain YAML would keep the last in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                problem = f"the key `{key.value}` stands twice in one mapping"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value))
        return node


def _read_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_StrictLoader)
