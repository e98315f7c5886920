"""The encoder rearranged for a CPU: the plain model's results, alone and packed, in each precision."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from modernbert.errors import BackendError, InputError
from modernbert.infer import fused
from modernbert.infer.fused import FusedEncoder, refusal
from modernbert.layout import SequenceLayout, pack
from modernbert.model import heads
from modernbert.model.config import EncoderConfig, HeadConfig
from modernbert.model.encoder import ModernBertModel
from modernbert.model.init import initialise
from modernbert.ops.native import build as native_build
from modernbert.ops.native import kernels

CPU = torch.device("cpu")
LENGTHS = (1, 2, 64, 65, 128, 129, 1024)
IDS = {"vocab_size": 512, "cls_token_id": 1, "sep_token_id": 2, "pad_token_id": 3}


def needs(precision: str) -> pytest.MarkDecorator:
    why = refusal(CPU, precision)
    return pytest.mark.skipif(why is not None, reason=f"fused {precision}: {why}")


pytestmark = needs("fp32")


@pytest.fixture(scope="module", params=[False, True], ids=["torch", "native"])
def native(request: pytest.FixtureRequest) -> bool:
    """Who does what lies between products."""
    if request.param and (why := kernels.refusal(32)):
        pytest.skip(why)
    return bool(request.param)


def spread(model: Any) -> Any:
    """Give a model random weights whose norms are not all one."""
    initialise(model, seed=1)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def build(preset: str, **settings: Any) -> ModernBertModel:
    return spread(ModernBertModel(EncoderConfig.preset(preset, **{**IDS, **settings}), backend="plain"))  # type: ignore[no-any-return]


def sequences(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, 512, (length,), generator=generator).tolist() for length in lengths]


@torch.inference_mode()
def encode(model: Any, given: list[list[int]]) -> list[Tensor]:
    """The hidden states of sequences computed together."""
    ids, layout = pack(given)
    return list(layout.split(model(ids, layout)))


def cosine(found: Tensor, expected: Tensor) -> float:
    return float(functional.cosine_similarity(found, expected, dim=-1).min())


@pytest.fixture(scope="module", params=["tiny", "base"])
def plain(request: pytest.FixtureRequest) -> ModernBertModel:
    return build(request.param, num_hidden_layers=4 if request.param == "tiny" else 3)


@pytest.fixture(scope="module")
def exact(plain: ModernBertModel) -> list[Tensor]:
    """What the plain definition gives for each length alone."""
    return [encode(plain, [ids])[0] for ids in sequences(*LENGTHS)]


class TestExact:
    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, plain: ModernBertModel, native: bool) -> FusedEncoder:
        return FusedEncoder(plain, native=native)

    def test_alone(self, model: FusedEncoder, exact: list[Tensor]) -> None:
        for ids, expected in zip(sequences(*LENGTHS), exact, strict=True):
            (found,) = encode(model, [ids])
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)

    def test_packed(self, model: FusedEncoder, exact: list[Tensor]) -> None:
        for found, expected in zip(encode(model, sequences(*LENGTHS)), exact, strict=True):
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
        few = slice(0, 4)  # no sequence longer than the window
        for found, expected in zip(encode(model, sequences(*LENGTHS)[few]), exact[few], strict=True):
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)

    def test_no_sequence_sees_another(self, model: FusedEncoder) -> None:
        before = sequences(17, 130, 64, 1, 200)
        for changed in range(len(before)):
            after = list(before)
            after[changed] = sequences(len(before[changed]), seed=9)[0]
            pairs = zip(encode(model, before), encode(model, after), strict=True)
            for index, (one, other) in enumerate(pairs):
                assert torch.equal(one, other) == (index != changed)

    def test_the_same_twice(self, model: FusedEncoder) -> None:
        given = sequences(5, 300)
        for one, other in zip(encode(model, given), encode(model, given), strict=True):
            assert torch.equal(one, other)


class TestLossy:
    @needs("bf16")
    def test_bf16(self, plain: ModernBertModel, exact: list[Tensor], native: bool) -> None:
        model = FusedEncoder(plain, "bf16", native)
        for found, expected in zip(encode(model, sequences(*LENGTHS)), exact, strict=True):
            assert found.dtype == torch.float32
            assert cosine(found, expected) > 0.999

    @needs("bf16")
    def test_bf16_where_torch_is_held_to_avx2(
        self, plain: ModernBertModel, exact: list[Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As `ATEN_CPU_CAPABILITY` does: our kernels have no bf16 products then."""
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
        monkeypatch.setattr(native_build, "library", functools.cache(native_build.library.__wrapped__))
        if why := kernels.refusal(32):
            pytest.skip(why)
        self.test_bf16(plain, exact, native=True)

    @needs("int8")
    def test_int8(self, plain: ModernBertModel, exact: list[Tensor], native: bool) -> None:
        model = FusedEncoder(plain, "int8", native)
        for found, expected in zip(encode(model, sequences(*LENGTHS)), exact, strict=True):
            assert found.dtype == torch.float32
            assert cosine(found, expected) > 0.99

    @needs("int8")
    def test_int8_does_not_depend_on_neighbours(self, plain: ModernBertModel, native: bool) -> None:
        model = FusedEncoder(plain, "int8", native)
        given = sequences(17, 130, 64, 1, 200)
        together = encode(model, given)
        backwards = encode(model, given[::-1])[::-1]
        for ids, found, other in zip(given, together, backwards, strict=True):
            (alone,) = encode(model, [ids])
            # A rounding difference can move an activation to the next of 255 codes: a step is 1/127.
            for packed in (found, other):
                assert cosine(packed, alone) > 1 - 1e-5


class TestShapes:
    @pytest.mark.parametrize(
        "settings",
        [
            {"layer_types": ("sliding_attention",) * 4},
            {"layer_types": ("sliding_attention", "full_attention", "full_attention", "sliding_attention")},
            {"window": 1},
            {"window": 7, "num_hidden_layers": 1},
            {"num_attention_heads": 1},
            {"num_attention_heads": 32},
            {"intermediate_size": 33},
            {"hidden_size": 66, "num_attention_heads": 3},
            {"norm_eps": 1e-2, "global_rope_theta": 77.0, "local_rope_theta": 5.0},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=needs("int8"))])
    def test_of_other_models(self, settings: dict[str, Any], precision: Any) -> None:
        plain = build("tiny", **settings)  # where native kernels do not fit, torch serves
        model = FusedEncoder(plain, precision)
        given = sequences(1, 9, 70, 150)
        for found, expected in zip(encode(model, given), encode(plain, given), strict=True):
            if precision == "fp32":
                torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
            assert cosine(found, expected) > 0.99

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_weights_in_half_precision(self, dtype: torch.dtype) -> None:
        rounded = build("tiny").to(dtype)
        model = FusedEncoder(rounded)
        given = sequences(1, 9, 150)
        for found, expected in zip(encode(model, given), encode(rounded.float(), given), strict=True):
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)

    def test_the_encoder_given_is_left_as_it_was(self) -> None:
        plain = build("tiny").to(torch.bfloat16)
        before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
        model = FusedEncoder(plain)
        encode(model, sequences(20))
        for name, tensor in plain.state_dict().items():
            assert tensor.dtype == torch.bfloat16
            assert torch.equal(tensor, before[name])
        with torch.no_grad():
            plain.embeddings.tok_embeddings.weight.zero_()
        assert encode(model, sequences(20))[0].abs().max() > 0.1


class TestHeads:
    @pytest.mark.parametrize("kind", [name for name in heads.HEADS if name != "ModernBertModel"])
    def test_any_on_it(self, kind: str) -> None:
        head = HeadConfig(labels=("a", "b", "c")) if "Classification" in kind else HeadConfig()
        model: Any = spread(heads.HEADS[kind](EncoderConfig.preset("tiny", head=head, **IDS)))
        ids, layout = pack(sequences(3, 70, 150))
        with torch.inference_mode():
            expected = model(ids, layout)
            model.model = FusedEncoder(model.model)
            torch.testing.assert_close(model(ids, layout), expected, atol=2e-5, rtol=0)
            if kind == "ModernBertForMaskedLM":
                positions = torch.tensor([1, 80, 222])
                torch.testing.assert_close(
                    model(ids, layout, positions), expected[positions], atol=2e-5, rtol=0
                )


class TestRefusals:
    def test_native_kernels_that_do_not_fit(self) -> None:
        odd = build("tiny", hidden_size=66, num_attention_heads=3)
        assert FusedEncoder(odd).arithmetic == "fp32, torch"
        with pytest.raises(
            BackendError, match=r"^the native kernels cannot serve: heads are 22 wide; they must"
        ):
            FusedEncoder(odd, native=True)

    def test_input_that_does_not_fit(self) -> None:
        model = FusedEncoder(build("tiny", max_position_embeddings=16))
        with pytest.raises(InputError, match="a sequence has 17 tokens; this model takes at most 16"):
            encode(model, sequences(17))
        with pytest.raises(InputError, match=r"`input_ids` has shape \(3,\); it must be \(4,\)"):
            model(torch.tensor([1, 2, 3]), SequenceLayout.of([4]))

    @pytest.mark.parametrize(
        ("device", "precision", "why"),
        [
            ("cuda", "fp32", "it runs on a CPU, not on cuda"),
            ("mps", "auto", "it runs on a CPU, not on mps"),
            ("cpu", "fp16", "it has no fp16"),
            ("cpu", "auto", None),
            ("cpu", "fp32", None),
        ],
    )
    def test_what_it_is_not_for(self, device: str, precision: str, why: str | None) -> None:
        assert refusal(torch.device(device), precision) == why

    def test_a_build_without_onednn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert refusal(CPU, "auto") == "this build of torch is without oneDNN"
        with pytest.raises(BackendError) as caught:
            FusedEncoder(build("tiny"))
        assert str(caught.value) == (
            "the `fused` backend cannot serve: this build of torch is without oneDNN; choose `auto` or "
            "`portable`"
        )

    def test_a_cpu_without_the_instructions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
        assert refusal(CPU, "int8") == "this CPU has no 8-bit products (AVX512-VNNI)"
        assert refusal(CPU, "fp32") is None

    def test_a_cpu_without_bf16(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        assert refusal(CPU, "bf16") == "this CPU has no bf16 products (AVX512-BF16)"

    def test_another_kind_of_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fused.platform, "machine", lambda: "aarch64")
        assert refusal(CPU, "auto") == "it is made for x86 CPUs, not for aarch64"
