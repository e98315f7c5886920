"""The model card of a fine-tuned model: a README.md as the hub wants it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from modernbert.recipes.finetune.about import About, command
from modernbert.recipes.finetune.drawings import readable
from modernbert.recipes.finetune.findings import Findings
from modernbert.recipes.finetune.report import figure_of, range_of
from modernbert.recipes.run_tables import duration

PIPELINES: Mapping[str, str] = {
    "classify": "text-classification",
    "tag": "token-classification",
    "answer": "question-answering",
    "choose": "multiple-choice",
    "prompt": "fill-mask",
}
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
HUB_METRICS: Mapping[str, str] = {
    "accuracy": "accuracy",
    "f1": "f1",
    "macro_f1": "f1",
    "micro_f1": "f1",
    "weighted_f1": "f1",
    "precision": "precision",
    "recall": "recall",
    "mcc": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "mse": "mse",
    "mae": "mae",
    "roc_auc": "roc_auc",
    "exact_match": "exact_match",
}
"""What the hub calls our figures; those it has no name for stay out of the front matter."""


def model_card(
    about: About,
    findings: Sequence[Findings],
    *,
    settings: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> str:
    """Return the model card as Markdown with YAML in front.

    Args:
        about: What the run was.
        findings: Of each split, the one that counts first; may be empty.
        settings: The run's, as resolved.
        facts: Of the machine, as `runtime.machine_facts`.
    """
    front = yaml.safe_dump(_front_matter(about, findings), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{front}---",
        f"# {_plain(about.model)}",
        f"{_code(about.base_model)} fine-tuned with `modernbert finetune {about.task}`.",
        _usage(about),
        *(_figures(found) for found in findings),
        _data(about),
        _training(about, settings or {}, facts or {}),
        _limits(about, findings),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _front_matter(about: About, findings: Sequence[Findings]) -> dict[str, Any]:
    front: dict[str, Any] = {}
    if about.language:
        front["language"] = [about.language]
    if about.license:
        front["license"] = about.license
    front |= {
        "library_name": "transformers",
        "pipeline_tag": PIPELINES[about.task],
        "tags": ["modernbert", PIPELINES[about.task]],
    }
    if HUB_ID.fullmatch(about.base_model):  # the hub refuses paths
        front["base_model"] = about.base_model
    results = [_result(about, found) for found in findings if _hub_figures(found)]
    if results:
        names = [figure["type"] for result in results for figure in result["metrics"]]
        front["metrics"] = list(dict.fromkeys(names))
        front["model-index"] = [{"name": about.model, "results": results}]
    return front


def _result(about: About, found: Findings) -> dict[str, Any]:
    part = about.part(found.split)
    source = part.source if part else found.split
    return {
        "task": {"type": PIPELINES[about.task]},
        "dataset": {"name": source, "type": source, "split": found.split},
        "metrics": _hub_figures(found),
    }


def _hub_figures(found: Findings) -> list[dict[str, Any]]:
    return [
        {"type": HUB_METRICS[name], "value": round(value, 6), "name": readable(name)}
        for name, value in found.figures.items()
        if name in HUB_METRICS
    ]


def _usage(about: About) -> str:
    folder = "FOLDER"
    return "\n\n".join(
        [
            "## Use",
            f"```bash\n{command(about, folder)}\n```",
            f"```python\nimport modernbert\n\nmodel = modernbert.load({folder!r})\n{_call(about)}\n```",
            f"With transformers:\n\n```python\n{_transformers(about, folder)}\n```",
        ]
    )


def _call(about: About) -> str:
    pair = 'model.classify({"text": "…", "text_pair": "…"})'
    return {
        "classify": pair if about.takes_pairs else 'model.classify("…")',
        "tag": 'model.tag("…")',
        "answer": 'model.answer("QUESTION", "TEXT")',
        "choose": 'model.choose("PROMPT", ["CHOICE", "CHOICE"])',
        "prompt": 'model.fill_mask("… [MASK] …")',
    }[about.task]


def _transformers(about: About, folder: str) -> str:
    pipelines = {
        "classify": '{"text": "…", "text_pair": "…"}' if about.takes_pairs else '"…"',
        "tag": '"…"',
        "prompt": '"… [MASK] …"',
    }
    if about.task in pipelines:
        return (
            "from transformers import pipeline\n\n"
            f'use = pipeline("{PIPELINES[about.task]}", model={folder!r})\nuse({pipelines[about.task]})'
        )
    kind = {"answer": "QuestionAnswering", "choose": "MultipleChoice"}[about.task]
    return (
        f"from transformers import AutoModelFor{kind}, AutoTokenizer\n\n"
        f"model = AutoModelFor{kind}.from_pretrained({folder!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({folder!r})"
    )


def _figures(found: Findings) -> str:
    rows = [
        (readable(name), figure_of(name, value), range_of(found, name), _seeds(found, name))
        for name, value in found.figures.items()
        if "/" not in name
    ]
    if not rows:
        return ""
    return (
        f"## Figures on {_plain(found.split)}\n\n"
        + _table(("figure", "value", "95% interval", "mean ± deviation over seeds"), rows)
        + f"\n\n{found.num_examples:,} examples; the intervals are bootstrapped over them."
    )


def _seeds(found: Findings, name: str) -> str:
    spread = found.spread.get(name)
    if spread is None:
        return "–"
    return f"{figure_of(name, spread.mean)} ± {figure_of(name, spread.deviation)} ({spread.count})"


def _data(about: About) -> str:
    rows = [
        (part.split, _code(part.source), f"{part.num_examples:,}", f"{part.num_tokens:,}")
        for part in about.data
    ]
    parts = ["## Data"]
    if rows:
        parts.append(_table(("split", "source", "examples", "tokens"), rows))
    if about.labels:
        parts.append(f"Labels: {', '.join(map(_code, about.labels))}.")
    if about.remarks:
        parts.append("\n".join(f"- {_plain(remark)}" for remark in about.remarks))
    return "\n\n".join(parts) if len(parts) > 1 else ""


def _training(about: About, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    where = facts.get("gpu") or facts.get("cpu")
    versions = [f"{name} {facts[name]}" for name in ("modernbert", "torch", "commit") if facts.get(name)]
    said = [
        f"{about.num_steps:,} steps in {duration(about.seconds)}" + (f" on {_plain(where)}" if where else ""),
        f"{about.num_trained:,} of {about.num_parameters:,} parameters trained",
        f"{'seed' if len(about.seeds) == 1 else 'seeds'} {', '.join(map(str, about.seeds))}",
        ", ".join(versions),
    ]
    text = "## Training\n\n" + "; ".join(filter(None, said)) + "."
    if settings:
        dumped = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
        text += f"\n\n{_fence(dumped, 'yaml')}"
    return text


def _limits(about: About, findings: Sequence[Findings]) -> str:
    limits = [
        "The figures hold for examples like those evaluated; on other kinds of text, measure again.",
        "What the base model learned from its own data, its biases with it, is still there.",
    ]
    if not any(found.split == "test" for found in findings):
        limits.insert(
            0, "No test set was evaluated; the best checkpoint may have been chosen on these examples."
        )
    if any(found.figures.get("calibration_error", 0) > 0.05 for found in findings):
        limits.append("Its probabilities are off by more than 5 points on average; see the report.")
    if rare := [row.label for found in findings[:1] for row in found.per_label if row.support < 20]:
        shown = ", ".join(map(_code, rare[:10])) + (" …" if len(rare) > 10 else "")
        limits.append(f"Fewer than 20 examples evaluated have these labels: {shown}.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _plain(text: object) -> str:
    """Bring a text to one line in which no character is markup."""
    flat = " ".join(str(text).split())
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|" else letter for letter in flat)


def _code(text: str) -> str:
    """Write a text as code on one line, whatever ticks it has."""
    flat = " ".join(text.split())
    ticks = "`" * (1 + max((len(run) for run in _runs(flat)), default=0))
    room = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{ticks}{room}{flat}{room}{ticks}" if flat else "``` ```"


def _fence(text: str, language: str) -> str:
    ticks = "`" * max(3, 1 + max((len(run) for run in _runs(text)), default=0))
    return f"{ticks}{language}\n{text}{ticks}"


def _runs(text: str) -> list[str]:
    return re.findall("`+", text)
