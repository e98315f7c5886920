"""Exported files against torch, in onnxruntime. An export takes seconds: few are made, and shared."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from modernbert.errors import BackendError, InputError
from modernbert.infer import export
from modernbert.infer.embedding_head import DenseConfig, EmbeddingConfig, EmbeddingHead
from modernbert.infer.export import export_onnx
from modernbert.infer.onnx_runner import OnnxRunner, open_session, pad
from modernbert.infer.runner import TorchRunner
from modernbert.layout import pack
from modernbert.model.config import EncoderConfig, HeadConfig
from modernbert.model.encoder import ModernBertModel
from modernbert.model.heads import HEADS

BATCHES = [(1,), (64,), (65, 1), (129, 128, 64), (1024, 200), (8192,)]


def make(kind: str) -> Any:
    """A model of one global and one local layer."""
    torch.manual_seed(5)
    head = HeadConfig(labels=("a", "b", "c")) if "Classification" in kind else HeadConfig()
    model = HEADS[kind](EncoderConfig.preset("tiny", num_hidden_layers=2, head=head))
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    return model.eval()


def ids(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(512, (length,), generator=generator).tolist() for length in lengths]


class Exported:
    """A model, its folder and the report on it."""

    def __init__(self, kind: str, folder: Path, **settings: Any) -> None:
        self.model = make(kind)
        self.folder = folder
        self.report = export_onnx(self.model, folder, **settings)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    dense = (DenseConfig(in_features=64, out_features=16),)
    head = EmbeddingHead(EmbeddingConfig(width=64, dense=dense, normalize=True)).eval()
    made = Exported("ModernBertModel", tmp_path_factory.mktemp("embedder"), embedding_head=head)
    made.model.embedding_head = head
    return made


@pytest.fixture(scope="module")
def masked_lm(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(
        "ModernBertForMaskedLM", tmp_path_factory.mktemp("int8"), quantize="int8", sample=ids(9, 90, 30)
    )


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("lengths", BATCHES, ids=str)
@torch.no_grad()
def test_an_encoder_with_its_embeddings(embedder: Exported, lengths: tuple[int, ...], side: Any) -> None:
    inputs = pad(ids(*lengths), 3, side)
    session = open_session(embedder.folder / "onnx" / "model.onnx")
    tokens, sentences = map(torch.from_numpy, session.run(None, inputs))
    packed, layout = pack(ids(*lengths))
    hidden = embedder.model(packed, layout)
    real = torch.from_numpy(inputs["attention_mask"]).bool()
    torch.testing.assert_close(tokens[real], hidden, rtol=0, atol=1e-5)
    torch.testing.assert_close(sentences, embedder.model.embedding_head(hidden, layout), rtol=0, atol=1e-5)


def test_the_graph_as_other_tools_see_it(embedder: Exported) -> None:
    model = onnx.load(embedder.folder / "onnx" / "model.onnx")
    onnx.checker.check_model(model)

    def form(values: Any) -> dict[str, list[Any]]:
        axes = {value.name: value.type.tensor_type.shape.dim for value in values}
        return {name: [one.dim_param or one.dim_value for one in dims] for name, dims in axes.items()}

    both = ["batch", "sequence"]
    assert form(model.graph.input) == {"input_ids": both, "attention_mask": both}
    assert {value.type.tensor_type.elem_type for value in model.graph.input} == {onnx.TensorProto.INT64}
    assert form(model.graph.output) == {"token_embeddings": [*both, 64], "sentence_embedding": ["batch", 16]}
    opsets = {one.domain: one.version for one in model.opset_import}
    assert opsets == {"": 20, "com.microsoft": 1}


def test_global_attention_gets_no_mask_and_local_attention_no_square(embedder: Exported) -> None:
    """Both make long texts affordable: with a mask onnxruntime holds the scores of all heads at once."""
    nodes = onnx.load(embedder.folder / "onnx" / "model.onnx").graph.node
    attention = [node for node in nodes if node.op_type == "MultiHeadAttention"]
    assert [len(node.input) for node in attention] == [3]
    assert sum(node.op_type == "Softmax" for node in nodes) == 1


def test_the_report_stands_beside_the_file(embedder: Exported) -> None:
    report = embedder.report
    file = embedder.folder / "onnx" / "model.onnx"
    assert report.file == str(file)
    assert report.num_bytes == file.stat().st_size
    assert 0 < report.max_deviation < 1e-5
    assert (report.architecture, report.pooling, report.num_dense) == ("ModernBertModel", ("mean",), 1)
    assert (report.normalize, report.opset, report.precision, report.quality) == (True, 20, "fp32", None)
    assert set(report.versions) == {"modernbert", "torch", "onnx", "onnxscript", "onnxruntime"}
    written = json.loads((embedder.folder / "onnx" / "model.json").read_text())
    assert written["max_deviation"] == report.max_deviation
    assert written["pooling"] == ["mean"]
    names = sorted(path.name for path in embedder.folder.rglob("*") if path.is_file())
    assert names == ["config.json", "model.json", "model.onnx"]


def test_a_runner_gives_what_torch_gives(embedder: Exported) -> None:
    sequences = ids(3, 400, 65, 380, 1, 66)
    runner = OnnxRunner(embedder.folder, threads=1)
    output, layout = runner(sequences)
    expected, _ = TorchRunner(embedder.model, "fp32")(sequences)
    assert runner.config == embedder.model.config
    assert layout.lengths == (3, 400, 65, 380, 1, 66)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


def test_int8(masked_lm: Exported) -> None:
    quality = masked_lm.report.quality
    assert quality is not None
    assert masked_lm.report.precision == "int8"
    assert masked_lm.report.max_deviation < 1e-5
    assert 0.99 < quality.min_cosine < quality.mean_cosine < 1
    assert quality.top1_agreement is not None
    assert 0.9 < quality.top1_agreement <= 1
    assert quality.num_sequences == 3
    assert [path.name for path in masked_lm.folder.rglob("*.onnx")] == ["model_int8.onnx"]
    nodes = onnx.load(masked_lm.folder / "onnx" / "model_int8.onnx").graph.node
    assert (
        sum(node.op_type == "MatMulInteger" for node in nodes) >= 2 * 4
    )  # every linear layer of every block


def test_an_int8_runner_is_near_torch_at_the_positions(masked_lm: Exported) -> None:
    positions = torch.tensor([70, 0, 33])
    output, _ = OnnxRunner(masked_lm.folder)(ids(30, 70), positions)
    expected, _ = TorchRunner(masked_lm.model, "fp32")(ids(30, 70), positions)
    assert output.shape == (3, 512)
    assert torch.nn.functional.cosine_similarity(output, expected).min() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in HEADS if kind != "ModernBertModel"])
def test_each_head(kind: str, tmp_path: Path) -> None:
    made = Exported(kind, tmp_path)
    assert made.report.max_deviation < 1e-5
    exported, ours = OnnxRunner(tmp_path), TorchRunner(made.model, "fp32")
    for lengths in BATCHES:
        torch.testing.assert_close(exported(ids(*lengths))[0], ours(ids(*lengths))[0], rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_large_weights_stand_beside_the_graph(
    quantize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LARGEST_FILE", 0)
    made = Exported("ModernBertForQuestionAnswering", tmp_path, quantize=quantize, opset=18)
    file = Path(made.report.file)
    files = {path.name: path.stat().st_size for path in file.parent.iterdir()}
    assert files.keys() == {file.name, f"{file.name}.data", f"{file.stem}.json"}
    assert made.report.num_bytes == files[file.name] + files[f"{file.name}.data"]
    output, _ = OnnxRunner(tmp_path)(ids(70))
    assert output.shape == (70, 2)
    assert (made.report.quality is None) == (quantize is None)


@pytest.fixture
def traced(embedder: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter gives the same file whatever it is asked for."""
    file = embedder.folder / "onnx" / "model.onnx"
    monkeypatch.setattr(export, "_trace", lambda graph, target, opset: shutil.copy(file, target))


@pytest.mark.usefixtures("traced")
def test_a_graph_that_deviates_is_not_written(embedder: Exported, tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_text("of before")
    other = make("ModernBertModel")
    other.final_norm.weight.data *= 1.01
    with pytest.raises(
        BackendError, match=r"deviates from torch by .*; it must be at most 1e-04; try another"
    ):
        export_onnx(other, tmp_path, embedding_head=embedder.model.embedding_head)
    other.final_norm.weight.data[0] = torch.nan
    with pytest.raises(BackendError, match="deviates from torch by nan"):
        export_onnx(other, tmp_path, embedding_head=embedder.model.embedding_head)
    assert [path.name for path in tmp_path.rglob("*")] == ["onnx", "model.onnx"]
    assert (tmp_path / "onnx" / "model.onnx").read_text() == "of before"


@pytest.mark.usefixtures("traced")
def test_the_callers_model_stays_as_it_is(embedder: Exported, tmp_path: Path) -> None:
    model = make("ModernBertModel").to(torch.float64).train()
    model.backend = "varlen"
    head = embedder.model.embedding_head
    report = export_onnx(model, tmp_path / "named.onnx", embedding_head=head)
    assert report.max_deviation < 1e-5
    assert (model.training, model.backend, model.final_norm.weight.dtype) == (True, "varlen", torch.float64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "named.json", "named.onnx"]


@pytest.mark.usefixtures("traced")
def test_a_config_that_is_there_stays(embedder: Exported, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx.data").write_text("of a larger export before")
    export_onnx(embedder.model, tmp_path, embedding_head=embedder.model.embedding_head)
    assert (tmp_path / "config.json").read_text() == "{}"
    assert not (tmp_path / "onnx" / "model.onnx.data").exists()


def test_the_choices_of_a_question_compete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cosine and winner of choices are taken over all of them, those of an answer over its text."""
    outputs = {
        "exact": {"logits": torch.tensor([1.0, 3.0, 2.0])},
        "int8": {"logits": torch.tensor([1.0, 2.0, 3.0])},
    }
    monkeypatch.setattr(export, "open_session", lambda file: file.name)
    monkeypatch.setattr(export, "_outputs", lambda graph, session, sequences, side: outputs[session])
    graph = export._plain_graph(make("ModernBertForMultipleChoice"), None)
    quality = export._quality(graph, Path("exact"), Path("int8"), ids(3, 4, 5))
    assert quality.top1_agreement == 0
    assert quality.mean_cosine == pytest.approx(13 / 14)


CASES: list[tuple[str, dict[str, Any], str]] = [
    ("ModernBertForMaskedLM", {"pooling": "mean"}, "only a `ModernBertModel` gives vectors to pool"),
    ("ModernBertModel", {"normalize": True}, "`normalize` needs `pooling`, one of: cls, mean"),
    ("ModernBertModel", {"pooling": "avg"}, "unknown pooling `avg`"),
    ("ModernBertModel", {"opset": 17}, "`opset` is 17; it must be at least 18"),
    ("ModernBertModel", {"quantize": "int4"}, "`quantize` is 'int4'; it must be 'int8'"),
    (
        "ModernBertModel",
        {"pooling": "mean", "embedding_head": EmbeddingHead(EmbeddingConfig(width=64))},
        "`embedding_head` comes with `pooling`",
    ),
]


@pytest.mark.parametrize(("kind", "settings", "message"), CASES)
def test_settings_that_do_not_fit(kind: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export_onnx(make(kind), tmp_path, **settings)


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    class Mine(ModernBertModel):
        pass

    with pytest.raises(InputError, match="the model is a `Mine`, which has no graph"):
        export_onnx(Mine(EncoderConfig.preset("tiny")), tmp_path)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_it_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendError, match=rf"`{package}` is not installed.*modernbert\[onnx\]"):
        export_onnx(make("ModernBertModel"), tmp_path)


def test_other_loggers_are_heard_again(caplog: pytest.LogCaptureFixture) -> None:
    with export._quiet():
        logging.getLogger().warning("kept back")
        logging.getLogger("modernbert").warning("heard at once")
    logging.getLogger().warning("heard again")
    assert caplog.messages == ["heard at once", "heard again"]
