"""What does continued pretraining gain on new text and lose on the old, and what is a new tokenizer worth?

`domain`: a finished run's model goes on with `runs/continue.yaml` on other text. Both models are measured on
what either run held out. `language`: the same model learns another language in three ways, over the same
tokens: with its own tokenizer, with a new one whose rows come from the old, and with the new one from random
weights. Losses of two tokenizers are compared in nats a character: masked loss times tokens a character. That
is rough: what surrounds a masked token says more of a byte than of a word.

    python -m benchmarks.continued domain --run FOLDER --text PATH --output FOLDER phases.0.tokens=20e6 …
    python -m benchmarks.continued language --run FOLDER --text PATH --output FOLDER --vocab-size 16384 …
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import save, show
from modernbert import runtime, telemetry
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import InputError
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.recipes.prepare import prepare_shards
from modernbert.recipes.pretrain import pretrain
from modernbert.recipes.settings import PretrainRun, TokenizerSettings, read_run
from modernbert.recipes.validation import Validation
from modernbert.train.loop import Evaluation

RUNS = Path(__file__).parents[1] / "runs"
DOMAIN = "masked loss on old and new text, before and after continued pretraining"
LANGUAGE = "nats a character of a new language: kept tokenizer, new one with old rows, new one from nothing"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, train, measure, write the result."""
    given = _parser().parse_intermixed_args(arguments)
    before = replace(read_run(given.run / "run.yaml"), folder=str(given.run))
    machine = runtime.machine_facts(runtime.choose_device(before.device))
    question, measure = {"domain": (DOMAIN, domain), "language": (LANGUAGE, language)}[given.what]
    rows, more = measure(given, before)
    path = save(f"continued_{given.what}", question, rows, machine, given.results, **more)
    show(question, rows)
    telemetry.note(f"written to {path}")


def domain(given: argparse.Namespace, before: PretrainRun) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Continue on other text; measure both models on both texts."""
    after = read_run(RUNS / "continue.yaml", [*_common(given, "domain"), *given.overrides])
    pretrain(after)
    models = {"before": Path(before.folder) / "model", "after": Path(after.folder) / "model"}
    rows: list[dict[str, Any]] = []
    for text, run in (("old", before), ("new", after)):
        # As long as the new run's last sequences, and as much of each text.
        run = replace(
            run,
            validation=replace(run.validation, max_tokens=after.validation.max_tokens, by_length=None),
            phases=(replace(run.phases[-1], sequence_length=after.phases[-1].sequence_length),),
        )
        found = {name: _measure(path, run) for name, path in models.items()}
        rows.append(
            {
                "text": text,
                "loss_before": found["before"].loss,
                "loss_after": found["after"].loss,
                "change": found["after"].loss - found["before"].loss,
                "accuracy_before": found["before"].accuracy,
                "accuracy_after": found["after"].accuracy,
                "masked_tokens": found["before"].num_masked,
            }
        )
    return rows, {"tokens": after.schedule().total_tokens, "phases": _phases(after)}


def language(given: argparse.Namespace, before: PretrainRun) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Learn a language in three ways; bring the losses to one measure."""

    def run(name: str, *tokenizer: str) -> PretrainRun:
        file = RUNS / "adapt_language.yaml"
        return read_run(file, [*_common(given, name), *tokenizer, *given.overrides])

    new = run("new_tokenizer", f"tokenizer.vocab_size={given.vocab_size}")
    learned = TokenizerSettings(path=f"{new.folder}/tokenizer")
    kept = run("kept_tokenizer", "tokenizer=" + json.dumps({"path": str(given.run / "model")}))
    random = replace(new, folder=str(given.output / "from_nothing"), start=None, tokenizer=learned)
    runs = {"new": new, "kept": kept, "from nothing": random}
    for each in runs.values():
        pretrain(each)
    (words,) = (record["vocabulary"] for record in _records(new, "start"))
    rates = dict.fromkeys(runs, words["tokens_per_character"])
    rates["kept"] = words["tokens_per_character_before"]
    rows = [
        {
            "tokenizer": name,
            "tokens": record["tokens"],
            "loss": record["loss"],
            "accuracy": record["accuracy"],
            "tokens_per_character": rates[name],
            "nats_per_character": record["loss"] * rates[name],
        }
        for name, each in runs.items()
        for record in _records(each, "validation")
    ]
    return rows, {"vocabulary": words, "phases": _phases(new)}


def _common(given: argparse.Namespace, name: str) -> list[str]:
    settings = {
        "folder": str(given.output / name),
        "start.model": str(given.run / "model"),
        "data.sources": [{"name": "new", "path": str(given.text)}],
    }
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def _measure(model: Path, run: PretrainRun) -> Evaluation:
    """Measure a model on what a run held out."""
    folder, device = Path(run.folder), runtime.choose_device(run.device)
    tokenizer = Tokenizer.from_pretrained(folder / "tokenizer")
    held_out = Validation(run, prepare_shards(run, folder, tokenizer), tokenizer)
    loaded = ModernBertForMaskedLM.from_pretrained(model, device=device)
    found = held_out.measure(loaded, run.phases[-1], device=device)
    if found is None:
        raise InputError(f"`{folder}` holds out no text; there must be some to measure; give another run")
    return found.evaluation


def _records(run: PretrainRun, event: str) -> Iterator[Mapping[str, Any]]:
    lines = (Path(run.folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return (record for record in map(json.loads, lines) if record["event"] == event)


def _phases(run: PretrainRun) -> list[dict[str, Any]]:
    return run.schedule().table()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["domain", "language"])
    parser.add_argument("--run", type=Path, required=True, help="folder of the finished run to go on from")
    parser.add_argument("--text", type=Path, required=True, help="the new text, as a source's path")
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--vocab-size", type=int, default=16_384, help="of the new tokenizer (language)")
    parser.add_argument("--results", type=Path, help="folder of the result; none: benchmarks/results")
    parser.add_argument("overrides", nargs="*", help="changes of the run file's settings")
    return parser


if __name__ == "__main__":
    main()
