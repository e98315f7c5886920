"""Checkpoints that several processes write together, in the background, where all of them see the files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from modernbert import files
from modernbert.train.parts import NOTE, begin_writing, finish_writing
from modernbert.train.ranks import Ranks
from modernbert.train.state import PARTS, Checkpoints, Commit


class SharedCheckpoints(Checkpoints):
    """The checkpoints of a run of several processes.

    `save` copies what is to be written and returns; the ranks write the optimizer's parts while the run goes
    on, and the first rank the rest when all parts are there. A checkpoint appears whole or not at all. All
    ranks must call `save` and `finish`; what went wrong with one save, the next call raises.

    Args:
        folder: See `Checkpoints`; on a file system that all ranks see.
        save_model: See `Checkpoints`; is given a copy on the CPU, on the first rank.
        ranks: The processes of the run.
        gather: Gives that copy; all ranks call it. None on the others.
        keep_last: See `Checkpoints`.
        keep_best: See `Checkpoints`.
    """

    def __init__(
        self,
        folder: Path,
        save_model: Callable[[nn.Module, Path], None],
        ranks: Ranks,
        gather: Callable[[], nn.Module | None],
        *,
        keep_last: int = 3,
        keep_best: int = 1,
    ) -> None:
        super().__init__(folder, save_model, keep_last=keep_last, keep_best=keep_best)
        self._ranks = ranks
        self._gather = gather
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def finish(self) -> None:
        """Wait until what was saved last is on the disk.

        Raises:
            StorageError: See `Checkpoints.save`.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _save(self, path: Path, model: nn.Module, optimizer: Optimizer, commit: Commit) -> None:
        self.finish()
        ranks, parts = self._ranks, path.with_name(f".{path.name}.parts")
        if ranks.is_first:
            self._sweep()
        copy = self._gather()
        ranks.meet()  # none may write before the remains of a killed save are gone
        written, note = begin_writing(parts, model, optimizer, ranks)
        if copy is None:
            self._pending = self._thread.submit(self._await_parts, path, written)
            return

        def fill(folder: Path) -> None:
            finish_writing(written)
            self._save_model(copy, folder)
            shutil.move(parts, folder / PARTS)
            files.write_json(folder / PARTS / NOTE, note)

        self._pending = self._thread.submit(commit, fill)

    def _await_parts(self, path: Path, written: Future[Any]) -> None:
        with self._last_good_named(path):
            finish_writing(written)
