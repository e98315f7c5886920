"""What fine-tuning saves, others load with the same answers: transformers, PEFT, sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modernbert
from modernbert import files
from modernbert.recipes.finetune.session import finetune
from modernbert.recipes.finetune.settings import FinetuneRun

from .conftest import NAMES, PLACES

pytest.importorskip("sklearn", reason="needs the extra `finetune`")
pytestmark = pytest.mark.usefixtures("undrawn")
transformers = pytest.importorskip("transformers", reason="needs transformers")

Plan = Callable[..., FinetuneRun]

TEXTS = ["Ada likes Rome .", "Alan left Oslo today ."]
PAIRS = [("Ada likes Rome .", "Grace left Rome ."), ("Alan left Oslo today .", "Ada never saw Paris .")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "model"


def outputs(kind: str, folder: Path, *texts: Any, by: Any = None, **options: Any) -> Any:
    """Return what a class of transformers computes of texts that its tokenizer encodes."""
    words = transformers.AutoTokenizer.from_pretrained(folder)
    model = by or getattr(transformers, kind).from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**words(*texts, return_tensors="pt", padding=True, **options))


def check_config(folder: Path, problem: str, labels: Sequence[str]) -> None:
    tree = files.read_json(folder / "config.json")
    assert tree["problem_type"] == problem
    assert tree["id2label"] == {str(index): label for index, label in enumerate(labels)}
    assert tree["label2id"] == {label: index for index, label in enumerate(labels)}
    read = transformers.AutoConfig.from_pretrained(folder)
    assert read.num_labels == len(labels)
    assert read.id2label == dict(enumerate(labels))


def test_regression(plan: Plan, folder: Path) -> None:
    finetune(plan("classify", data="values"))
    check_config(folder, "regression", ["LABEL_0"])
    theirs = outputs("AutoModelForSequenceClassification", folder, TEXTS).logits[:, 0]
    pipeline = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    ours = modernbert.load(folder, device="cpu").classify(TEXTS)
    assert [it[0]["score"] for it in ours] == pytest.approx(theirs.tolist(), abs=1e-4)
    assert [it["score"] for it in pipeline(TEXTS)] == pytest.approx(theirs.tolist(), abs=1e-4)


def test_several_labels(plan: Plan, folder: Path) -> None:
    finetune(plan("classify", data="sets"))
    check_config(folder, "multi_label_classification", sorted([*NAMES, *PLACES]))
    pipeline = transformers.pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    ours = modernbert.load(folder, device="cpu").classify(TEXTS, top_k=None)
    for one, other in zip(pipeline(TEXTS), ours, strict=True):
        scores = {it["label"]: it["score"] for it in other}
        assert {it["label"]: it["score"] for it in one} == pytest.approx(scores, abs=1e-4)


def test_pairs(plan: Plan, folder: Path) -> None:
    finetune(plan("classify", data="pairs"))
    check_config(folder, "single_label_classification", ["London", "Oslo", "Paris", "Rome"])
    pipeline = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    given = [{"text": text, "text_pair": pair} for text, pair in PAIRS]
    ours = modernbert.load(folder, device="cpu").classify(given)
    for one, other in zip(pipeline(given), ours, strict=True):
        assert (one["label"], one["score"]) == (
            other[0]["label"],
            pytest.approx(other[0]["score"], abs=1e-4),
        )


def test_tags(plan: Plan, folder: Path) -> None:
    pytest.importorskip("seqeval", reason="needs the extra `finetune`")
    finetune(plan("tag", "tuning.epochs=1"))
    read = transformers.AutoConfig.from_pretrained(folder)
    assert list(read.id2label.values()) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def test_answers(plan: Plan, folder: Path) -> None:
    finetune(plan("answer", "tuning.epochs=4"))
    found = outputs("AutoModelForQuestionAnswering", folder, ["Where?"], TEXTS[:1])
    (ours,) = modernbert.load(folder, device="cpu").answer([("Where?", TEXTS[0])], align_to_words=False)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = words("Where?", TEXTS[0], return_offsets_mapping=True)
    own = [place for place, side in enumerate(encoded.sequence_ids()) if side in (1, None)]
    own = [0, *(place for place in own if encoded.sequence_ids()[place] == 1)]
    starts, ends = (it[0, own].softmax(0) for it in (found.start_logits, found.end_logits))
    scores = {
        (first, last): float(starts[first] * ends[last])
        for first in range(1, len(own))
        for last in range(first, min(first + 15, len(own)))
    }
    first, last = max(scores, key=lambda span: scores[span])
    characters = encoded["offset_mapping"][own[first]][0], encoded["offset_mapping"][own[last]][1]
    assert ours["answer"] == TEXTS[0][slice(*characters)].strip()
    assert ours["score"] == pytest.approx(scores[first, last], abs=1e-4)


def test_choices(plan: Plan, folder: Path) -> None:
    finetune(plan("choose"))
    words = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForMultipleChoice.from_pretrained(folder).eval()
    encoded = words([TEXTS[0]] * len(PLACES), list(PLACES), return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = model(**{name: tensor[None] for name, tensor in encoded.items()}).logits.softmax(-1)[0]
    (ours,) = modernbert.load(folder, device="cpu").choose([(TEXTS[0], list(PLACES))])
    assert ours["scores"] == pytest.approx(theirs.tolist(), abs=1e-4)


def test_prompts(plan: Plan, folder: Path) -> None:
    """The template, filled in by hand, gives the label's word in anybody's fill-mask."""
    finetune(plan("prompt", "head.template='{text} It is [MASK].'", "tuning.epochs=8"))
    pipeline = transformers.pipeline("fill-mask", model=str(folder), device="cpu")
    encoder = modernbert.load(folder, device="cpu")
    for text in TEXTS:
        prompt = f"{text} It is [MASK]."
        theirs = pipeline(prompt, top_k=4)
        ours = encoder.fill_mask(prompt, top_k=4)
        assert [it["token"] for it in theirs] == [it["token"] for it in ours]
        assert [it["score"] for it in theirs] == pytest.approx([it["score"] for it in ours], abs=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks it
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_in_peft(kind: str, plan: Plan, tmp_path: Path, folder: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra `finetune`")
    run = plan("classify", f"adapter.kind={kind}", "adapter.rank=4")
    finetune(run)
    adapter = tmp_path / "run" / "adapter"
    config = transformers.AutoConfig.from_pretrained(adapter)
    assert list(config.id2label.values()) == sorted(PLACES)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(run.model, config=config)
    model = peft.PeftModel.from_pretrained(base, adapter).eval()
    found = outputs("", folder, TEXTS, by=model).logits.softmax(-1)
    merged = outputs("AutoModelForSequenceClassification", folder, TEXTS).logits.softmax(-1)
    torch.testing.assert_close(found, merged, rtol=0, atol=1e-5)


def test_a_cross_encoder(plan: Plan, folder: Path, tmp_path: Path) -> None:
    """Of sentence-transformers, for pairs with a number, as of STS-B."""
    sentences = pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
    rows = [f"{first},{second},{place / 7}\n" for place, (first, second) in enumerate(PAIRS * 8)]
    (tmp_path / "pairs.csv").write_text("sentence1,sentence2,score\n" + "".join(rows), encoding="utf-8")
    finetune(plan("classify", f"data.train={tmp_path / 'pairs.csv'}"))
    encoder = sentences.CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    theirs = encoder.predict(PAIRS)
    given = [{"text": text, "text_pair": pair} for text, pair in PAIRS]
    ours = [it[0]["score"] for it in modernbert.load(folder, device="cpu").classify(given)]
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
