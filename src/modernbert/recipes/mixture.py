"""Mixture files: sources, and their shares in each phase, for the run files that name them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modernbert import config
from modernbert.data.source import SourceSettings
from modernbert.errors import ConfigError, did_you_mean

# Overrides of what stands in the mixture file; all others may decide which file that is.
_AFTER = re.compile(r"(data\.sources|phases\.[^.]+\.mixture)\.")


@dataclass(frozen=True, kw_only=True)
class MixtureFile:
    """What a file says that a run file names as `data.mixture`.

    Attributes:
        sources: All that some phase reads. One without a `path` is looked for below the run's `data.root`,
            under its name.
        phases: Share of each source by its name, for each phase by its name; in per cent or any other unit.
    """

    sources: tuple[SourceSettings, ...]
    phases: dict[str, dict[str, float]]

    def __post_init__(self) -> None:
        for name, shares in self.phases.items():
            if not shares:
                raise ConfigError(
                    f"`phases.{name}` names no source; it must give at least one a share; name one"
                )


def read_with_mixture(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Read a run file, with overrides, and put in what its mixture file says.

    `data.mixture` is relative to the run file; given as an override, to the working folder. Each phase gets
    the shares that the mixture file has under its name, or under the name that its `mixture` gives. A source
    without a `path` gets that of its name below `data.root`.

    Raises:
        ConfigError: A file is missing, or they do not fit each other.
    """
    tree = config.load(path)
    data = tree.get("data")
    if isinstance(data, dict) and isinstance(data.get("mixture"), str):
        data["mixture"] = str(path.parent / data["mixture"])
    given = list(overrides)
    tree = config.override(tree, [one for one in given if not _AFTER.match(one)])
    if isinstance(tree.get("data"), dict):
        tree = _resolve(tree)
    return config.override(tree, [one for one in given if _AFTER.match(one)])


def _resolve(tree: dict[str, Any]) -> dict[str, Any]:
    data = dict(tree["data"])
    mixture, root = data.pop("mixture", None), data.pop("root", None)
    for key, value in (("mixture", mixture), ("root", root)):
        if not isinstance(value, str | None):
            raise ConfigError(f"`data.{key}` is {value!r}; it must be a path; correct it")
    if mixture is None:
        if "sources" in data:
            data["sources"] = _with_paths(data["sources"], root)
        return {**tree, "data": data}
    if "sources" in data:
        raise ConfigError(
            "`data.sources` stands beside `data.mixture`; only one may name the sources; remove the other"
        )
    file = _read(mixture, root)
    given = tree.get("phases")
    phases = [_with_shares(phase, file, mixture) for phase in given] if isinstance(given, list) else []
    used = {name for phase in phases if isinstance(phase, dict) for name in phase["mixture"]}
    read = [source for source in file.sources if source.name in used] or file.sources
    data["sources"] = config.to_tree(read)
    return {**tree, "data": data, "phases": phases or given}


def _read(path: str, root: str | None) -> MixtureFile:
    try:
        content = config.load(Path(path))
        content = {**content, "sources": _with_paths(content.get("sources", []), root)}
        return config.build(MixtureFile, content)
    except ConfigError as error:
        raise ConfigError(f"in the mixture `{path}`: {error}") from None


def _with_paths(sources: Any, root: str | None) -> Any:
    """Give sources without a path that of their name below `root`; what is no source is refused later."""
    if root is None or not isinstance(sources, list):
        return sources
    return [
        {"path": f"{root.rstrip('/')}/{source.get('name')}", **source} if isinstance(source, dict) else source
        for source in sources
    ]


def _with_shares(phase: Any, file: MixtureFile, path: str) -> Any:
    """Give a phase the shares of its row of the mixture file, unless it has its own."""
    if not isinstance(phase, dict) or isinstance(phase.get("mixture"), Mapping):
        return phase
    row = phase.get("mixture") or phase.get("name")
    if not isinstance(row, str) or row not in file.phases:
        raise ConfigError(
            f"the mixture `{path}` has no shares for phase `{row}`{did_you_mean(str(row), file.phases)}; "
            "`mixture` of the phase may name them"
        )
    return {**phase, "mixture": dict(file.phases[row])}
