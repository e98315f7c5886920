"""The public object: one input, several or an iterator in; what each method needs; saving."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modernbert
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ConfigError, InputError
from modernbert.infer.encoder import Encoder
from modernbert.infer.loading import load

LABELS = ("O", "B-PER", "I-PER")
KINDS = {
    "Model": {},
    "ForMaskedLM": {},
    "ForSequenceClassification": {"labels": ("entailment", "neutral", "contradiction")},
    "ForTokenClassification": {"labels": LABELS},
    "ForQuestionAnswering": {},
    "ForMultipleChoice": {},
}
TEXTS = ["the river runs", "France", "a small town " * 30]
MASKED = [f"{text} [MASK]" for text in TEXTS]
PAIRS = [("the river", "runs"), ("France", "is a town"), ("a", "")]

# What each method is called with, one input and several, and the model that it needs.
CALLS: dict[str, tuple[str, Any, list[Any]]] = {
    "fill_mask": ("ForMaskedLM", "the [MASK]", ["the [MASK]", "[MASK] runs"]),
    "encode": ("Model", TEXTS[0], TEXTS),
    "encode_query": ("Model", TEXTS[0], TEXTS),
    "encode_document": ("Model", TEXTS[0], TEXTS),
    "encode_chunks": ("Model", TEXTS[0], TEXTS),
    "classify": ("ForSequenceClassification", TEXTS[0], [*TEXTS, PAIRS[0]]),
    "tag": ("ForTokenClassification", TEXTS[0], [*TEXTS, ["the", "river"]]),
    "answer": (
        "ForQuestionAnswering",
        {"question": "the river?", "context": "a small town"},
        [{"question": "the river?", "context": "a small town"}, ("runs?", "through France")],
    ),
    "choose": (
        "ForMultipleChoice",
        {"prompt": "the river", "choices": ["runs", "is"]},
        [{"prompt": "the river", "choices": ["runs", "is"]}, ("France", ["a", "the"])],
    ),
    "predict": ("ForSequenceClassification", PAIRS[0], PAIRS),
}


class Series:
    """Iterates and has a length, as a column of pandas or polars."""

    ndim = 1

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)


@pytest.fixture(scope="module")
def loaded(folder: Callable[..., Path]) -> Callable[..., Encoder]:
    """Load the tiny model of a kind; the plain way unless told otherwise."""
    encoders: dict[Any, Encoder] = {}

    def loaded(kind: str, **options: Any) -> Encoder:
        key = (kind, *options.items())
        if key not in encoders:
            options = {"backend": "portable", **options}
            encoders[key] = load(folder(kind, **KINDS[kind]), device="cpu", **options)
        return encoders[key]

    return loaded


def as_plain(value: Any) -> Any:
    """Make arrays lists, so that results can be compared."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list):
        return [as_plain(one) for one in value]
    return {key: as_plain(one) for key, one in value.items()} if isinstance(value, dict) else value


class TestOneOrSeveral:
    @pytest.mark.parametrize("method", CALLS)
    def test_one_several_and_an_iterator(
        self, method: str, loaded: Callable[..., Encoder], same: Callable[..., None]
    ) -> None:
        kind, one, several = CALLS[method]
        call = getattr(loaded(kind), method)
        expected = [as_plain(call([value])[0]) for value in several]
        same(as_plain(call(one)), expected[0])
        same(as_plain(call(several)), expected)
        same(as_plain(call(Series(several))), expected)
        same(as_plain(call([one])), expected[:1])
        lazily = call(iter(several))
        assert isinstance(lazily, Iterator)
        same([as_plain(result) for result in lazily], expected)
        assert list(call(iter([]))) == []
        assert len(call([])) == 0

    @pytest.mark.parametrize("method", ["encode", "classify", "fill_mask", "encode_chunks"])
    def test_tuples_and_arrays(
        self, method: str, loaded: Callable[..., Encoder], same: Callable[..., None]
    ) -> None:
        call = getattr(loaded(CALLS[method][0]), method)
        given = MASKED if method == "fill_mask" else TEXTS
        expected = as_plain(call(given))
        for several in (
            tuple(given),
            np.array(given),
            np.array(given, dtype=object),
            dict.fromkeys(given).keys(),
        ):
            same(as_plain(call(several)), expected)
        same(as_plain(call(np.array(given)[0])), expected[0])

    def test_an_iterator_is_read_as_results_are_asked_for(self, loaded: Callable[..., Encoder]) -> None:
        read: list[str] = []

        def endless() -> Iterator[str]:
            while True:
                read.append("the river")
                yield read[-1]

        vectors = loaded("Model").encode(endless())
        assert not read
        assert next(vectors).shape == (64,)
        assert len(read) < 1000
        vectors.close()

    @pytest.mark.parametrize("method", CALLS)
    @pytest.mark.parametrize("value", [None, 3, 2.5, b"text", {"a": 1}, Path("x")])
    def test_what_is_no_input(self, method: str, value: Any, loaded: Callable[..., Encoder]) -> None:
        call = getattr(loaded(CALLS[method][0]), method)
        with pytest.raises(InputError):
            call(value)
        with pytest.raises(InputError, match=r"^input 70 is "):
            list(call(iter([CALLS[method][1]] * 70 + [value])))

    def test_the_refusal_names_it(self, loaded: Callable[..., Encoder]) -> None:
        with pytest.raises(InputError) as caught:
            loaded("Model").encode({"text": "a"})
        assert str(caught.value) == (
            "the input is {'text': 'a'} (dict); it must be text, a list, a column or an iterator"
        )

    def test_a_table_is_no_list_of_its_columns(self, loaded: Callable[..., Encoder]) -> None:
        class Table(Series):
            columns = ("title", "text")

        with pytest.raises(InputError, match=r"\(Table\); it must be text, a list, a column or an iterator"):
            loaded("Model").encode(Table(["title", "text"]))


class TestHeads:
    @pytest.mark.parametrize("method", [name for name in CALLS if not name.startswith("encode")])
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_method_needs_its_head(self, method: str, kind: str, loaded: Callable[..., Encoder]) -> None:
        needed, one, _ = CALLS[method]
        encoder = loaded(kind)
        if kind == needed:
            getattr(encoder, method)(one)
            return
        with pytest.raises(InputError) as caught:
            getattr(encoder, method)(one)
        assert str(caught.value) == (
            f"`{encoder.name}` is a `ModernBert{kind}`; `{method}` needs a `ModernBert{needed}`; load a "
            "checkpoint with that head, or fine-tune one"
        )

    def test_rank_and_zero_shot_need_theirs(self, loaded: Callable[..., Encoder]) -> None:
        with pytest.raises(InputError, match="`zero_shot` needs a `ModernBertForSequenceClassification`"):
            loaded("Model").zero_shot("a", ["b"])
        with pytest.raises(InputError, match="needs a `ModernBertForSequenceClassification`"):
            loaded("ForMaskedLM").rank("a", ["b"])

    @pytest.mark.parametrize("kind", KINDS)
    def test_any_model_embeds(
        self, kind: str, loaded: Callable[..., Encoder], folder: Callable[..., Path]
    ) -> None:
        from modernbert.model.encoder import ModernBertModel

        encoder = loaded(kind)
        alone = ModernBertModel.from_pretrained(folder(kind, **KINDS[kind]))
        ids = torch.tensor(encoder.tokenizer.encode(TEXTS[0]))
        with torch.no_grad():
            expected = alone(ids, modernbert.SequenceLayout.of([len(ids)])).mean(dim=0)
        np.testing.assert_allclose(encoder.encode(TEXTS[0]), expected, atol=2e-5)
        assert encoder.encode(TEXTS).shape == (3, encoder.embedding_dim)

    def test_an_exported_head_gives_no_hidden_states(self, loaded: Callable[..., Encoder]) -> None:
        whole = loaded("ForMaskedLM")
        exported = Encoder(
            name="there",
            architecture=whole.architecture,
            runner=whole.runner,
            encoder_runner=None,
            texts=whole.texts,
            embedding_head=whole.embedding_head,
            activation=None,
            engine=whole.engine,
        )
        assert exported.fill_mask("a [MASK]")
        with pytest.raises(
            InputError, match="`there` was exported with the head of a `ModernBertForMaskedLM`; `enc"
        ):
            exported.encode("a")
        with pytest.raises(InputError, match="`encode_chunks` needs hidden states"):
            exported.encode_chunks("a")


class TestEmbeddings:
    def test_options_reach_the_task(self, loaded: Callable[..., Encoder]) -> None:
        encoder = loaded("Model")
        vectors = encoder.encode(TEXTS, normalize_embeddings=True, truncate_dim=8)
        assert vectors.shape == (3, 8)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        assert not np.allclose(encoder.encode(TEXTS, pooling="cls"), encoder.encode(TEXTS))
        assert isinstance(encoder.encode(TEXTS, convert_to_tensor=True), torch.Tensor)
        assert isinstance(encoder.encode("a", convert_to_tensor=True), torch.Tensor)
        hidden = encoder.encode(TEXTS, output_value="token_embeddings")
        assert [one.shape for one in hidden] == [
            (min(len(encoder.tokenizer.encode(text)), 128), 64) for text in TEXTS
        ]

    def test_they_hold_for_an_iterator_too(self, loaded: Callable[..., Encoder]) -> None:
        encoder = loaded("Model")
        for options in (
            {"precision": "ubinary"},
            {"precision": "int8", "ranges": np.stack([-np.ones(64), np.ones(64)])},
            {"convert_to_numpy": False},
            {"output_value": "token_embeddings"},
        ):
            expected = encoder.encode(TEXTS, **options)
            for found, wanted in zip(encoder.encode(iter(TEXTS), **options), expected, strict=True):
                assert type(found) is type(wanted)
                assert found.dtype == wanted.dtype
                assert np.array_equal(found, wanted) or np.allclose(found, wanted, atol=2e-5)

    def test_ranges_that_one_text_has_not(self, loaded: Callable[..., Encoder]) -> None:
        with pytest.raises(InputError, match="no ranges, which int8 and uint8 need"):
            next(loaded("Model").encode(iter(TEXTS), precision="int8"))

    def test_prompts(self, loaded: Callable[..., Encoder]) -> None:
        encoder = loaded("Model")
        np.testing.assert_array_equal(
            encoder.encode("town", prompt="a small "), encoder.encode("a small town")
        )
        np.testing.assert_array_equal(encoder.encode_query("town"), encoder.encode("town"))
        with pytest.raises(ConfigError, match=r"the model has no prompt `passage`"):
            encoder.encode("town", prompt_name="passage")

    def test_unknown_options_are_refused(self, loaded: Callable[..., Encoder]) -> None:
        with pytest.raises(TypeError, match="normalise"):
            loaded("Model").encode("a", normalise=True)

    def test_similarity(self, loaded: Callable[..., Encoder]) -> None:
        encoder = loaded("Model")
        vectors = encoder.encode(TEXTS)
        assert encoder.similarity(vectors, vectors[:2]).shape == (3, 2)
        torch.testing.assert_close(encoder.similarity_pairwise(vectors, vectors), torch.ones(3))


@pytest.fixture(scope="module")
def judge(folder: Callable[..., Path]) -> Encoder:
    """A cross-encoder: one label."""
    path = folder("ForSequenceClassification", labels=("relevance",))
    return load(path, device="cpu", backend="portable")


class TestScores:
    def test_of_one_label(self, judge: Encoder) -> None:
        scores = judge.predict(PAIRS)
        assert (scores.shape, scores.dtype) == ((3,), np.float32)
        assert judge.predict(PAIRS[0]).shape == ()
        assert judge.predict([list(pair) for pair in PAIRS]) == pytest.approx(scores)
        assert judge.predict([]).shape == (0,)
        raw = judge.predict(PAIRS, activation="identity")
        np.testing.assert_allclose(scores, 1 / (1 + np.exp(-raw)), rtol=1e-5)

    def test_of_several(self, loaded: Callable[..., Encoder]) -> None:
        assert loaded("ForSequenceClassification").predict(PAIRS).shape == (3, 3)
        assert loaded("ForSequenceClassification").predict(PAIRS[0]).shape == (3,)

    def test_rank(self, judge: Encoder) -> None:
        documents = ["a river", "France", "the small town"]
        ranks = judge.rank("river", documents, return_documents=True)
        scores = judge.predict([("river", document) for document in documents])
        assert [rank["corpus_id"] for rank in ranks] == np.argsort(-scores).tolist()
        assert [rank["text"] for rank in ranks] == [documents[rank["corpus_id"]] for rank in ranks]
        assert judge.rank("river", iter(documents), top_k=1) == [  # type: ignore[arg-type]
            {key: ranks[0][key] for key in ("corpus_id", "score")}
        ]
        assert judge.rank("river", []) == []

    @pytest.mark.parametrize("documents", ["a text", b"bytes"])
    def test_rank_of_one_text(self, documents: Any, judge: Encoder) -> None:
        with pytest.raises(InputError, match=r"`documents` is one text, .*; it must be several; make a list"):
            judge.rank("river", documents)


class TestPairsOfArguments:
    def test_question_and_context(self, loaded: Callable[..., Encoder]) -> None:
        encoder = loaded("ForQuestionAnswering")
        assert encoder.answer("the river?", "a small town") == encoder.answer(
            {"question": "the river?", "context": "a small town"}
        )
        assert len(encoder.answer("the river?", "a small town", top_k=2)) == 2

    def test_prompt_and_choices(self, loaded: Callable[..., Encoder]) -> None:
        found = loaded("ForMultipleChoice").choose("the river", ["runs", "is"])
        assert found == loaded("ForMultipleChoice").choose({"prompt": "the river", "choices": ["runs", "is"]})
        assert list(found) == ["choice", "text", "scores"]

    def test_zero_shot(self, loaded: Callable[..., Encoder]) -> None:
        found = loaded("ForSequenceClassification").zero_shot(TEXTS[0], ["river", "town"])
        assert sorted(found["labels"]) == ["river", "town"]


def test_what_it_says_of_itself(loaded: Callable[..., Encoder], tokenizer: Tokenizer) -> None:
    encoder = loaded("ForTokenClassification")
    assert encoder.config.head.labels == LABELS
    assert encoder.tokenizer.fingerprint == tokenizer.fingerprint
    assert (encoder.max_length, encoder.embedding_dim) == (128, 64)
    assert encoder.embedding_config.pooling == ("mean",)
    assert encoder.architecture == "ModernBertForTokenClassification"


class TestSave:
    @pytest.mark.parametrize("kind", KINDS)
    def test_round_trip(
        self, kind: str, loaded: Callable[..., Encoder], tmp_path: Path, same: Callable[..., None]
    ) -> None:
        encoder = loaded(kind)
        encoder.save_pretrained(tmp_path / "saved")
        again = load(tmp_path / "saved", device="cpu", backend="portable")
        assert (again.architecture, again.config) == (encoder.architecture, encoder.config)
        assert again.max_length == encoder.max_length
        np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
        for method, (needed, one, _) in CALLS.items():
            if needed == kind:
                same(as_plain(getattr(again, method)(one)), as_plain(getattr(encoder, method)(one)))

    @pytest.mark.parametrize("kind", ["Model", "ForMaskedLM"])
    def test_packed_weights_are_refused(
        self, kind: str, loaded: Callable[..., Encoder], tmp_path: Path
    ) -> None:
        encoder = loaded(kind, backend="fused")
        with pytest.raises(InputError) as caught:
            encoder.save_pretrained(tmp_path / "saved")
        assert str(caught.value) == (
            "the model was loaded for inference, its weights packed; to be saved it must be plain; load "
            f'`{encoder.name}` with `backend="portable"`'
        )
        assert not (tmp_path / "saved").exists()


def test_a_progress_bar_changes_no_result(folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = modernbert.load(folder("Model"), device="cpu")
    texts = ["the river", "a small town", "of France"]
    shown = encoder.encode(texts, show_progress_bar=True)
    assert "3 texts" in capsys.readouterr().err
    assert (shown == encoder.encode(texts)).all()
    assert capsys.readouterr().err == ""


def test_the_batch_size_of_sentence_transformers_changes_nothing(folder: Any) -> None:
    encoder = modernbert.load(folder("Model"), device="cpu")
    texts = ["the river", "a small town", "of France"]
    assert (encoder.encode(texts, batch_size=1) == encoder.encode(texts)).all()
