"""What a finished run leaves: the model, its adapter if it has one, its card, and the report."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modernbert import config, files
from modernbert.data.tokenizer import Tokenizer
from modernbert.model.adapter_files import save_adapter
from modernbert.model.adapters import merged
from modernbert.model.checkpoint import Pretrained
from modernbert.recipes.finetune.about import About, DataPart, write_about
from modernbert.recipes.finetune.card import model_card
from modernbert.recipes.finetune.findings import Findings, write_findings
from modernbert.recipes.finetune.report import write_report
from modernbert.recipes.finetune.task import TEST, TRAIN, VALIDATION, TuningTask
from modernbert.recipes.tuning.journal import Progress
from modernbert.recipes.tuning.session import MODEL

ADAPTER = "adapter"


def write_outcome(
    task: TuningTask[Any],
    folder: Path,
    model: Pretrained,
    words: Tokenizer,
    found: Mapping[str, Findings],
    *,
    progress: Progress,
    best_step: int,
    facts: Mapping[str, Any],
) -> None:
    """Write what a run came to into its folder.

    Args:
        task: With its data.
        folder: The run's.
        model: The best one, whole.
        words: Its tokenizer.
        found: By split.
        progress: How far the run went.
        best_step: After how many steps the model was this.
        facts: Of the machine.
    """
    for findings in found.values():
        write_findings(folder, findings)
    about = _about(task, folder, model, progress, best_step)
    write_about(folder, about)
    _write_model(task, folder, model, words)
    if found:
        write_report(folder)
    card = model_card(about, list(found.values()), settings=config.to_tree(task.run), facts=facts)
    files.write_text(folder / MODEL / "README.md", card)


def _about(
    task: TuningTask[Any], folder: Path, model: Pretrained, progress: Progress, best_step: int
) -> About:
    trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    return About(
        task=task.run.task,
        model=folder.name,
        base_model=task.run.model,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_trained=sum(trained),
        labels=model.config.head.labels,
        data=tuple(_parts(task)),
        takes_pairs=task.takes_pairs,
        remarks=tuple(
            f"{split.path}: {remark.summary()}" for split in task.splits.values() for remark in split.remarks
        ),
        seeds=(task.run.seed,),
        best_step=best_step,
        num_steps=progress.step,
        seconds=progress.seconds,
    )


def _parts(task: TuningTask[Any]) -> Iterator[DataPart]:
    for name in (TRAIN, VALIDATION, TEST):
        if name in task.splits:
            examples = task.examples(name)
            yield DataPart(
                split=name,
                source=task.splits[name].path,
                num_examples=len(task.splits[name].records),
                num_tokens=sum(example.num_tokens for example in examples),
            )


def _write_model(task: TuningTask[Any], folder: Path, model: Pretrained, words: Tokenizer) -> None:
    for name in (MODEL, ADAPTER):
        shutil.rmtree(folder / name, ignore_errors=True)  # that of an earlier call
    if task.run.adapter is not None:
        save_adapter(model, folder / ADAPTER, base=task.run.model)
        model = merged(model)
    with files.atomic_folder(folder / MODEL) as temporary:
        model.save_pretrained(temporary)
        words.save_pretrained(temporary, model_max_length=model.config.max_position_embeddings)
