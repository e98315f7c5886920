"""The folder of a run: one process at a time, and one run, which goes on where it was stopped."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modernbert import config, files
from modernbert.errors import ConfigError

log = logging.getLogger(__name__)

SETTINGS, FACTS, CHECKPOINTS = "run.yaml", "facts.json", "checkpoints"


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a run's folder while the block runs, so that no second process trains into it.

    Raises:
        ConfigError: The folder is a file, or another process holds it.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"`folder` is `{folder}`, a file; it must be a folder or new; choose another name")
    refusal = (
        f"`folder` `{folder}` is in use by another process; one at a time may train there; wait for it, stop "
        "it, or choose another folder"
    )
    with files.hold(folder, refusal):
        yield


def check_settings(folder: Path, run: Any, free: re.Pattern[str]) -> list[str]:
    """Make sure that a folder is new, or holds the same run.

    Until the first checkpoint nothing is learned: settings that turned out wrong may still be mended.

    Args:
        folder: The run's.
        run: Its settings, a dataclass.
        free: Matches the beginning of the differences that do not matter.

    Returns:
        What differs from the settings that were there, as `config.differences` says it.

    Raises:
        ConfigError: The folder holds a run with other settings.
    """
    path = folder / SETTINGS
    if not path.exists():
        return []
    written = config.load(path)
    with contextlib.suppress(ConfigError):  # else of a release that had other settings
        written = config.to_tree(config.build(type(run), written))  # with what is new since at its default
    changed = config.differences(written, config.to_tree(run))
    bound = [line for line in changed if not free.match(line)]
    if bound and has_begun(folder):
        raise ConfigError(
            f"`{folder}` holds a run with other settings ({'; '.join(bound)}); to go on with it, "
            "use the same settings; for a new run, choose another `folder`"
        )
    if bound:
        log.info("no checkpoint yet: the run begins anew with %s", "; ".join(bound))
    return changed


def write_settings(folder: Path, run: Any, facts: dict[str, Any]) -> None:
    """Write a run's settings, and facts of the machine, into its folder."""
    files.write_text(folder / SETTINGS, config.dump(run))
    files.write_json(folder / FACTS, facts)


def has_begun(folder: Path) -> bool:
    """Whether there is a checkpoint, of the run or of one of several runs that it stands for."""
    return any(folder.glob(f"**/{CHECKPOINTS}/step-*"))
