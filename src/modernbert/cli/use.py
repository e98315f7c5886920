"""The verbs of use, one for each method of `Encoder`. Their JSON is what the methods return."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modernbert import telemetry
from modernbert.cli import human
from modernbert.cli.given import SAMPLE, Given
from modernbert.cli.options import (
    AsJson,
    ModelChoice,
    Normalize,
    Pooling,
    Prompt,
    PromptName,
    TextArguments,
    TextKey,
    TruncateDim,
    VectorPrecision,
    Whole,
    note_precision,
    with_model,
)

if TYPE_CHECKING:  # torch is loaded when a verb runs, not to print its help
    from modernbert.infer.embedding import EncodeOptions


@with_model
def fill_mask(
    choice: ModelChoice,
    texts: TextArguments = None,
    top_k: Annotated[int, typer.Option("--top-k", help="Proposals for each mask.")] = 5,
    targets: Annotated[
        list[str] | None, typer.Option("--targets", help="Propose this word only; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Propose tokens for each [MASK]; the JSON is that of transformers' fill-mask pipeline."""
    from modernbert.infer.fill_mask import describe

    given = Given(texts)
    encoder = choice.load(given.sample())
    given.serve(
        lambda texts: encoder.fill_mask(texts, top_k=top_k, targets=targets or None),
        describe,
        as_json=as_json,
    )


@with_model
def encode(
    choice: ModelChoice,
    source: Annotated[Path, typer.Argument(metavar="IN", help=".txt, .jsonl (.gz, .zst) or .parquet.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help=".npy or .parquet; a part of it goes on.")],
    text_key: TextKey = "text",
    id_key: Annotated[str | None, typer.Option(help="Key of the rows' names; goes into Parquet.")] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Every N-th row from row I on; from 0.")
    ] = None,
    precision: VectorPrecision = "float32",
    ranges_of: Annotated[
        Path | None, typer.Option(help="Take the ranges of int8 or uint8 from this output.")
    ] = None,
    prompt_name: PromptName = None,
    prompt: Prompt = None,
    pooling: Pooling = None,
    normalize: Normalize = False,
    truncate_dim: TruncateDim = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the vectors of a file's texts to a file; the same command goes on where a run was stopped."""
    from modernbert.infer import stream
    from modernbert.infer.rows import read_rows
    from modernbert.infer.vector_source import EncoderSource

    sample: list[str] = []
    if choice.is_lossy or precision != "float32":
        sample = [row.text for row in islice(read_rows(source, text_key=text_key), SAMPLE)]
    options = {"prompt_name": prompt_name, "prompt": prompt, "pooling": pooling}
    vectors = EncoderSource(
        choice.load(sample, **options), **options, normalize_embeddings=normalize, truncate_dim=truncate_dim
    )
    ranges = None if ranges_of is None else stream.read_ranges(ranges_of)
    note_precision(list(vectors.encode(iter(sample))), precision, ranges)
    report = stream.encode_file(
        vectors,
        source,
        output,
        text_key=text_key,
        id_key=id_key,
        precision=precision,  # type: ignore[arg-type]  # which checks it
        ranges=ranges,
        shard=None if shard is None else stream.parse_shard(shard),
        overwrite=overwrite,
    )
    if as_json:
        telemetry.result_json({**vars(report), "output": str(report.output)})
    else:
        telemetry.result(report.summary())
    if report.stopped_by is not None:
        raise typer.Exit(1)


@with_model
def embed(
    choice: ModelChoice,
    texts: TextArguments = None,
    prompt_name: PromptName = None,
    prompt: Prompt = None,
    pooling: Pooling = None,
    normalize: Normalize = False,
    truncate_dim: TruncateDim = None,
    precision: VectorPrecision = "float32",
    as_json: AsJson = False,
) -> None:
    """Print the vectors of texts; for files, see `encode`."""
    from modernbert.infer.quantize import quantize

    given = Given(texts)
    options: EncodeOptions = {"prompt_name": prompt_name, "prompt": prompt, "pooling": pooling}
    encoder = choice.load(given.sample(), **options)

    options |= {"normalize_embeddings": normalize, "truncate_dim": truncate_dim}

    def vectors(texts: Any) -> Any:
        exact = encoder.encode(list(texts), **options)
        note_precision(exact, precision)
        return quantize(exact, precision).tolist()

    given.serve(vectors, human.vector, as_json=as_json)


@with_model
def similarity(
    choice: ModelChoice,
    texts: TextArguments = None,
    prompt_name: PromptName = None,
    prompt: Prompt = None,
    as_json: AsJson = False,
) -> None:
    """Compare each text with each, by the model's similarity."""
    options: EncodeOptions = {"prompt_name": prompt_name, "prompt": prompt}
    all_texts = Given(texts).all()
    encoder = choice.load(all_texts, **options)
    embeddings = encoder.encode(all_texts, **options)
    similarities = encoder.similarity(embeddings, embeddings).tolist()
    if as_json:
        telemetry.result_json(similarities)
    else:
        telemetry.result(human.matrix(all_texts, similarities))


@with_model
def chunk(
    choice: ModelChoice,
    texts: TextArguments = None,
    max_chunk_tokens: Annotated[int, typer.Option(help="Most tokens of a chunk.")] = 256,
    prompt_name: PromptName = None,
    prompt: Prompt = None,
    normalize: Normalize = False,
    truncate_dim: TruncateDim = None,
    whole: Whole = False,
    as_json: AsJson = False,
) -> None:
    """Cut texts of any length into chunks of whole sentences, whose vectors know the whole text."""
    given = Given(texts, whole=whole)
    encoder = choice.load(given.sample())

    def chunks(texts: Any) -> Any:
        results = encoder.encode_chunks(
            texts,
            max_chunk_tokens=max_chunk_tokens,
            prompt_name=prompt_name,
            prompt=prompt,
            normalize_embeddings=normalize,
            truncate_dim=truncate_dim,
        )
        return ([{**part, "embedding": part["embedding"].tolist()} for part in parts] for parts in results)

    given.serve(chunks, human.chunks, as_json=as_json)


@with_model
def classify(
    choice: ModelChoice,
    texts: TextArguments = None,
    pair: Annotated[str | None, typer.Option(help="Second text, for a model of pairs.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Only the best labels.")] = None,
    function: Annotated[str | None, typer.Option(help="softmax, sigmoid or none (raw scores).")] = None,
    as_json: AsJson = False,
) -> None:
    """Score the labels of a classifier; the JSON is that of transformers' text-classification pipeline."""
    given = Given(texts)
    encoder = choice.load(given.sample())

    def labels(texts: Any) -> Any:
        inputs = texts if pair is None else ({"text": text, "text_pair": pair} for text in texts)
        return encoder.classify(inputs, top_k=top_k, function_to_apply=function)

    given.serve(labels, human.labels, as_json=as_json)


@with_model
def zero_shot(
    choice: ModelChoice,
    labels: Annotated[str, typer.Option("--labels", "-l", help="Candidate labels, with commas between.")],
    texts: TextArguments = None,
    template: Annotated[str, typer.Option(help="A sentence with {} for the label.")] = "This example is {}.",
    multi_label: Annotated[bool, typer.Option("--multi-label", help="Several labels may hold.")] = False,
    as_json: AsJson = False,
) -> None:
    """Score labels that the model, one for inference (NLI), was not trained on."""
    given = Given(texts)
    encoder = choice.load(given.sample())
    given.serve(
        lambda texts: encoder.zero_shot(texts, labels, hypothesis_template=template, multi_label=multi_label),
        human.zero_shot,
        as_json=as_json,
    )


@with_model
def tag(
    choice: ModelChoice,
    texts: TextArguments = None,
    strategy: Annotated[str, typer.Option(help="none, simple, first, average or max.")] = "simple",
    stride: Annotated[int | None, typer.Option(help="Tokens that the windows of a long text share.")] = None,
    whole: Whole = False,
    as_json: AsJson = False,
) -> None:
    """Find entities; the JSON is that of transformers' token-classification pipeline."""
    given = Given(texts, whole=whole)
    encoder = choice.load(given.sample())
    given.serve(
        lambda texts: encoder.tag(texts, aggregation_strategy=strategy, stride=stride),
        human.tags,
        as_json=as_json,
    )


@with_model
def answer(
    choice: ModelChoice,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What is asked.")],
    texts: TextArguments = None,
    top_k: Annotated[int, typer.Option("--top-k", help="Answers for each text.")] = 1,
    max_answer_len: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 15,
    no_answer: Annotated[bool, typer.Option("--no-answer", help="There may be none.")] = False,
    whole: Whole = False,
    as_json: AsJson = False,
) -> None:
    """Find the answer to a question in texts of any length."""
    given = Given(texts, whole=whole)
    encoder = choice.load(given.sample())

    def answers(texts: Any) -> Any:
        return encoder.answer(
            ({"question": question, "context": text} for text in texts),
            top_k=top_k,
            max_answer_len=max_answer_len,
            handle_impossible_answer=no_answer,
        )

    given.serve(answers, human.answers, as_json=as_json)


@with_model
def choose(
    choice: ModelChoice,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What comes first, or a question.")],
    texts: TextArguments = None,
    as_json: AsJson = False,
) -> None:
    """Choose the text that follows best."""
    choices = Given(texts).all()
    result = choice.load([prompt, *choices]).choose(prompt, choices)
    if as_json:
        telemetry.result_json(result)
    else:
        telemetry.result(human.choices(prompt, choices, result))


@with_model
def rank(
    choice: ModelChoice,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What is asked.")],
    texts: TextArguments = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Only the best.")] = None,
    activation: Annotated[
        str | None, typer.Option(help="Of the scores: sigmoid, identity, tanh; not the model's own.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rank texts for a query, by a cross-encoder."""
    documents = Given(texts).all()
    encoder = choice.load([query, *documents])
    results = encoder.rank(query, documents, top_k=top_k, activation=activation, return_documents=True)
    if as_json:
        telemetry.result_json(results)
    else:
        telemetry.result(human.ranking(query, results))
