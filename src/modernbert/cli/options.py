"""Options that verbs share, and the model that they choose."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from modernbert import telemetry

if TYPE_CHECKING:  # torch is loaded when a verb runs, not to print its help
    from modernbert.infer.encoder import Encoder

ModelName = Annotated[str, typer.Option("--model", "-m", help="Folder, hub id or preset name.")]
ModelNames = Annotated[
    list[str] | None, typer.Option("--model", "-m", help="Folder or hub id; given several times, several.")
]
TokenizerName = Annotated[str, typer.Option("--model", "-m", help="Folder or hub id.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16, int8.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
TextKey = Annotated[str, typer.Option(help="Name of the text in JSON lines and Parquet.")]
TextUnit = Annotated[  # `parser`, as typer before 0.19 knows no Literal; the reader checks the value
    Literal["line", "paragraph", "file"],
    typer.Option(parser=str, metavar="line|paragraph|file", help="What a document is in a .txt file."),
]
TextFiles = Annotated[
    list[str], typer.Argument(help="Text files, folders of them, or URLs: s3://…, hub://OWNER/NAME.")
]
MaxDocumentBytes = Annotated[int, typer.Option(help="A larger document is an error.")]

TextArguments = Annotated[
    list[str] | None, typer.Argument(metavar="TEXT…", help="None: those on stdin, one a line.")
]
Whole = Annotated[bool, typer.Option("--whole", help="What is on stdin is one text, lines and all.")]
PromptName = Annotated[str | None, typer.Option(help="Which of the model's prompts goes first: query …")]
Prompt = Annotated[str | None, typer.Option(help="Text to put before each text.")]
Pooling = Annotated[str | None, typer.Option(help="cls, mean, max, last, weighted …; not the model's own.")]
Normalize = Annotated[bool, typer.Option("--normalize", help="Scale each vector to length 1.")]
TruncateDim = Annotated[int | None, typer.Option(help="Leading dimensions to keep.")]
VectorPrecision = Annotated[str, typer.Option(help="float32, float16, int8, uint8, binary or ubinary.")]


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which model is used, and how: the arguments of `modernbert.load`, as options."""

    model: ModelName
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer, if not the model's own.")] = None
    device: Device = "auto"
    dtype: Dtype = "auto"
    backend: Annotated[
        str, typer.Option(help="auto, fused, onnx, varlen, fa3, fa4, fa3+varlen …, portable, plain.")
    ] = "auto"
    max_length: Annotated[int | None, typer.Option(help="Tokens beyond which texts are cut.")] = None
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens that share a forward pass.")] = None
    threads: Annotated[int | None, typer.Option(help="Threads on a CPU.")] = None
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits for a text whatever its neighbours.")
    ] = False

    @property
    def is_lossy(self) -> bool:
        """Whether a dtype was asked for whose results are not those of float32."""
        return self.dtype not in ("auto", "float32", "fp32")

    def load(self, sample: Sequence[str] = (), **options: Any) -> Encoder:
        """Load the model; if a lossy dtype was asked for, say on stderr how near to float32 it is.

        Args:
            sample: Some of the texts that it is wanted for.
            **options: Of `Encoder.encode`, that matter for how near it is.
        """
        from modernbert.infer.loading import load
        from modernbert.infer.quality import quality_line

        encoder = load(self.model, **self._load_options())
        if self.is_lossy and sample:
            exact = load(self.model, **replace(self, dtype="float32")._load_options())
            telemetry.note(f"{self.dtype}: {quality_line(encoder, exact, sample, **options)}")
        return encoder

    def _load_options(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "model"}


def with_model(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb, in place of its parameter `choice`, the options of `ModelChoice`."""
    return _expanded(verb, "choice", {}, lambda model, rest: ModelChoice(model=model, **rest))


def with_models(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb, in place of its parameter `choices`, the same options, `--model` any number of times."""

    def choices(models: list[str] | None, rest: dict[str, Any]) -> list[ModelChoice]:
        return [ModelChoice(model=model, **rest) for model in models or ()]

    return _expanded(verb, "choices", {"annotation": ModelNames, "default": None}, choices)


def _expanded(
    verb: Callable[..., None],
    name: str,
    model: Mapping[str, Any],
    choose: Callable[[Any, dict[str, Any]], Any],
) -> Callable[..., None]:
    """Put the options of `ModelChoice` in place of a verb's parameter `name`.

    Args:
        verb: What is to get them.
        name: Of the parameter.
        model: What is other about the option `--model`.
        choose: Makes the parameter's value of the model and the other options.
    """
    shared = dict(inspect.signature(ModelChoice, eval_str=True).parameters)
    shared["model"] = shared["model"].replace(**model)
    own = inspect.signature(verb, eval_str=True).parameters

    @functools.wraps(verb)
    def expanded(**values: Any) -> None:
        given = {option: values.pop(option) for option in shared}
        verb(**{name: choose(given.pop("model"), given)}, **values)

    parameters = [
        parameter.replace(kind=parameter.KEYWORD_ONLY)
        for parameter_name, parameter in {**own, **shared}.items()
        if parameter_name != name
    ]
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded


def note_precision(vectors: Any, precision: str, ranges: Any = None) -> None:
    """Say on stderr how near vectors stay to float32 in a lossy precision; see `precision_line`."""
    from modernbert.infer.quality import precision_line

    if precision != "float32" and len(vectors) > 1:
        telemetry.note(precision_line(vectors, precision, ranges))
