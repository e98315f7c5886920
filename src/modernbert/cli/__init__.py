"""The command line: one verb a function. Results go to stdout, everything else to stderr.

Exit codes: 0 done, 1 an error that the message explains (or a run that a signal stopped), 2 wrong usage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from modernbert import telemetry
from modernbert.cli import (
    benching,
    checkpoints,
    corpora,
    evaluating,
    finetuning,
    planning,
    retrieving,
    tokenizers,
    training,
    use,
)
from modernbert.errors import ModernBertError

VERBS: Mapping[str, Sequence[Callable[..., Any]]] = {
    "Train": (
        planning.plan,
        training.pretrain,
        finetuning.finetune,
        retrieving.train_retriever,
        training.report,
        training.tokenize,
        training.average,
        training.tour,
    ),
    "Use": (
        use.fill_mask,
        use.encode,
        use.embed,
        use.similarity,
        use.chunk,
        use.classify,
        use.zero_shot,
        use.tag,
        use.answer,
        use.choose,
        use.rank,
    ),
    "Check and convert": (
        checkpoints.inspect,
        checkpoints.verify,
        checkpoints.perplexity,
        benching.bench,
        checkpoints.export,
    ),
}

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="ModernBERT, whole."
)
for panel, verbs in VERBS.items():
    for verb in verbs:
        app.command(rich_help_panel=panel)(verb)
app.add_typer(tokenizers.app, name="tokenizer", rich_help_panel="Train")
app.add_typer(corpora.app, name="data", rich_help_panel="Train")
app.add_typer(evaluating.app, name="evaluate", rich_help_panel="Check and convert")


@app.callback()
def _common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log details too.")] = False,
) -> None:
    telemetry.configure_logging(verbose=verbose)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, on `sys.argv` if no arguments are given; return its exit code."""
    telemetry.accept_any_text()
    try:
        app(arguments)
    except ModernBertError as error:
        telemetry.note(f"error: {error}")
        return 1
    except SystemExit as done:  # how typer ends, after printing what there is to print
        return int(done.code or 0)
    return 0
