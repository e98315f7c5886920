"""What a fine-tuning run needs besides this package."""

from __future__ import annotations

import importlib.util

from modernbert.errors import BackendError
from modernbert.recipes.finetune.settings import FinetuneRun


def check_packages(run: FinetuneRun) -> None:
    """Make sure, before anything is learned, that what its evaluation needs is there.

    Raises:
        BackendError: A package is not installed.
    """
    names = {"sklearn": "scikit-learn", "scipy": "scipy", "matplotlib": "matplotlib"}
    if run.task == "tag":
        names["seqeval"] = "seqeval"
    for name, package in names.items():
        if importlib.util.find_spec(name) is None:
            raise BackendError(
                f"`{package}` is not installed, which the figures and the report of a run need; run `pip "
                "install 'modernbert[finetune]'`"
            )
