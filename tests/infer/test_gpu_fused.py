"""The encoder rearranged for a GPU: exact in plain torch on any device; by its kernels on one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from modernbert.errors import BackendError, InputError
from modernbert.infer.gpu import encoder as gpu
from modernbert.infer.gpu.encoder import GpuEncoder, refusal
from modernbert.infer.gpu.graphs import Size, _Room, rounded_up, size_for
from modernbert.infer.gpu.passes import TorchPasses
from modernbert.infer.gpu.tiles import CUTS, FEW_TOKENS, MANY, cut
from modernbert.infer.verify import draw_sequences
from modernbert.layout import SequenceLayout, pack
from modernbert.model import heads
from modernbert.model.config import EncoderConfig, HeadConfig
from modernbert.model.encoder import ModernBertModel
from modernbert.model.init import initialise

CPU = torch.device("cpu")
LENGTHS = (1, 2, 64, 65, 128, 129, 1024)
IDS = {"vocab_size": 512, "cls_token_id": 1, "sep_token_id": 2, "pad_token_id": 3}


def spread(model: Any) -> Any:
    """Give a model random weights whose norms are not all one, and under which attention matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if parameter.ndim == 1 else noise / parameter.shape[1] ** 0.5)
    return model.eval()


def build(preset: str = "tiny", **settings: Any) -> ModernBertModel:
    return spread(ModernBertModel(EncoderConfig.preset(preset, **{**IDS, **settings}), backend="plain"))  # type: ignore[no-any-return]


def in_torch(encoder: ModernBertModel, dtype: torch.dtype) -> GpuEncoder:
    return GpuEncoder(encoder, CPU, TorchPasses(encoder.config, dtype))


def sequences(encoder: ModernBertModel, *lengths: int) -> list[list[int]]:
    return draw_sequences(encoder.config, lengths)


@torch.inference_mode()
def encode(model: Any, given: list[list[int]], device: torch.device = CPU) -> list[Tensor]:
    """The hidden states of sequences computed together."""
    ids, layout = pack(given, device)
    return [hidden.float().cpu() for hidden in layout.split(model(ids, layout))]


def errors(found: list[Tensor], expected: list[Tensor]) -> tuple[float, float, float]:
    """Largest and mean error, and the lowest cosine."""
    a, b = torch.cat(found).double(), torch.cat(expected).double()
    away = (a - b).abs()
    return away.max().item(), away.mean().item(), functional.cosine_similarity(a, b, dim=-1).min().item()


class TestRearrangement:
    """What is folded, centred and permuted changes no result."""

    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"layer_types": ("sliding_attention",) * 4},
            {"window": 1},
            {"num_attention_heads": 1},
            {"intermediate_size": 33},
            {"norm_eps": 1e-2, "global_rope_theta": 77.0, "local_rope_theta": 5.0},
        ],
        ids=str,
    )
    def test_exact(self, settings: dict[str, Any]) -> None:
        plain = build(**settings)
        given = sequences(plain, 1, 2, 64, 65, 129, 150)
        exact = encode(plain.double(), given)
        for dtype, bound in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
            assert errors(encode(in_torch(plain, dtype), given), exact)[0] < bound

    def test_rounded_to_bf16_no_further_than_the_plain_model(self) -> None:
        plain = build("17m")
        given = sequences(plain, *LENGTHS[:-1])
        exact = encode(plain, given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            most, mean, cosine = errors(encode(plain, given), exact)
        found = errors(encode(in_torch(plain, torch.bfloat16), given), exact)
        assert found[0] <= most
        assert found[1] <= mean
        assert found[2] >= cosine

    def test_the_encoder_given_is_left_as_it_was(self) -> None:
        plain = build()
        before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
        encode(in_torch(plain, torch.float32), sequences(plain, 20))
        for name, tensor in plain.state_dict().items():
            assert torch.equal(tensor, before[name])

    def test_input_that_does_not_fit(self) -> None:
        model = in_torch(build(max_position_embeddings=16), torch.float32)
        with pytest.raises(InputError, match="a sequence has 17 tokens; this model takes at most 16"):
            encode(model, [[5] * 17])


class TestSizes:
    @pytest.mark.parametrize(
        ("num_tokens", "expected"),
        [(1, 32), (32, 32), (33, 64), (128, 128), (200, 224), (513, 640), (4096, 4096)],
    )
    def test_of_graphs(self, num_tokens: int, expected: int) -> None:
        assert rounded_up(num_tokens) == expected

    def test_a_batch_fits_into_its_size(self) -> None:
        for lengths in ((1,), (32,), (512,), (8,) * 9, (300, 20, 1), (1,) * 600, (FEW_TOKENS,)):
            layout = SequenceLayout.of(lengths)
            size = size_for(layout)
            assert size.num_tokens >= layout.num_tokens
            assert size.num_sequences >= layout.num_sequences

    def test_are_few(self) -> None:
        tokens = {rounded_up(count) for count in range(1, FEW_TOKENS + 1)}
        assert len(tokens) <= 32
        assert max(count / (rounded_up(count)) for count in tokens) == 1
        assert size_for(SequenceLayout.of([30])) == Size(32, 1)

    def test_is_captured_without_a_sequence(self) -> None:
        """One of all its tokens could be longer than any that the model knows rotations for."""
        room = _Room.of_size(Size(4096, 8), CPU)
        assert room.num_tokens == 4096
        assert room.offsets.tolist() == [0] * 9

    def test_cuts(self) -> None:
        assert cut(1) == cut(128) == CUTS[0][1]
        assert cut(10**6) == MANY


class TestRefusals:
    @pytest.mark.parametrize(
        ("device", "precision", "why"),
        [
            ("cpu", "bf16", "it runs on a GPU, not on cpu"),
            ("cuda", "fp32", "on a GPU it has no fp32"),
            ("cuda", "int8", "on a GPU it has no int8"),
        ],
    )
    def test_what_it_is_not_for(self, device: str, precision: str, why: str) -> None:
        assert refusal(torch.device(device), precision) == why

    def test_an_old_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
        assert refusal(torch.device("cuda"), "bf16") == (
            "its kernels are cut for Hopper GPUs, of compute capability 9.0; `Tesla T4` is none"
        )

    @pytest.mark.parametrize(
        ("settings", "why"),
        [
            ({"hidden_size": 48}, r"heads are 24 wide; they must be one of \(16, 32, 64, 128\)"),
            ({"intermediate_size": 33}, "`intermediate_size` is 33; it must be a multiple of 8"),
        ],
    )
    def test_shapes(self, settings: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: name)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
        encoder = build(**settings)
        with pytest.raises(BackendError, match=f"the `fused` backend cannot serve: {why}; choose"):
            GpuEncoder(encoder, torch.device("cuda"))
        assert refusal(torch.device("cuda"), "auto", EncoderConfig()) is None

    def test_no_triton(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
        assert refusal(torch.device("cuda"), "bf16") == (
            "Triton is not installed, which comes with torch for CUDA"
        )


@pytest.mark.gpu
class TestOnAGpu:
    @pytest.fixture(scope="class", params=["tiny", "base", "large"])
    @classmethod
    def plain(cls, request: pytest.FixtureRequest) -> ModernBertModel:
        return build(request.param).cuda()

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, plain: ModernBertModel) -> GpuEncoder:
        return GpuEncoder(plain, torch.device("cuda", 0))

    def test_no_further_than_the_plain_model(self, plain: ModernBertModel, model: GpuEncoder) -> None:
        """Alone and packed, as graphs and not."""
        device, limit = torch.device("cuda", 0), plain.config.max_position_embeddings
        given = sequences(plain, *LENGTHS, min(8192, limit))
        plain.backend = "portable"  # in fp32 no further from the definition than 1e-4, and it fits the memory
        exact = [encode(plain, [ids], device)[0] for ids in given]
        plain.backend = "auto"
        with torch.autocast("cuda", dtype=torch.bfloat16):
            most, mean, cosine = errors([encode(plain, [ids], device)[0] for ids in given], exact)
        alone = [encode(model, [ids], device)[0] for ids in given]
        short = encode(model, given[:-1], device)
        for found in (alone, [*short, alone[-1]], encode(model, given, device)):
            one = errors(found, exact)
            assert one[0] <= 1.25 * most  # the largest of millions
            assert one[1] <= mean
            assert one[2] >= 1 - 1.25 * (1 - cosine)

    def test_no_sequence_sees_another(self, model: GpuEncoder) -> None:
        device = torch.device("cuda", 0)
        for lengths in ((17, 130, 64, 1, 200), (700, 1200, 30), (700, 4000, 1100)):
            before = draw_sequences(model.config, lengths)
            for changed in range(len(before)):
                after = list(before)
                after[changed] = draw_sequences(model.config, [len(before[changed])], seed=9)[0]
                pairs = zip(encode(model, before, device), encode(model, after, device), strict=True)
                for index, (one, other) in enumerate(pairs):
                    assert torch.equal(one, other) == (index != changed)

    def test_lengths_that_change_compile_nothing_and_take_no_memory(self) -> None:
        import triton

        device = torch.device("cuda", 0)
        model = GpuEncoder(build(), device)
        generator = torch.Generator().manual_seed(0)

        def encode_some() -> int:
            for _ in range(250):
                count = int(torch.randint(1, 24, (1,), generator=generator))
                lengths = torch.randint(1, 900, (count,), generator=generator).tolist()
                encode(model, draw_sequences(model.config, lengths), device)
            return torch.cuda.memory_reserved()

        before = encode_some()
        compiled: list[object] = []
        triton.knobs.runtime.jit_post_compile_hook = lambda **of: compiled.append(of)
        after = encode_some()
        triton.knobs.runtime.jit_post_compile_hook = None
        assert not compiled
        assert after <= before + 2**26

    def test_any_head_on_it(self) -> None:
        device = torch.device("cuda", 0)
        for kind in heads.HEADS:
            if kind == "ModernBertModel":
                continue
            head = HeadConfig(labels=("a", "b", "c")) if "Classification" in kind else HeadConfig()
            model: Any = heads.HEADS[kind](EncoderConfig.preset("tiny", head=head, **IDS))
            initialise(model, seed=0)
            model = model.eval().to(device)
            ids, layout = pack(draw_sequences(model.config, (3, 70, 150)), device)
            with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
                expected = model(ids, layout)
                model.model = GpuEncoder(model.model, device)
                torch.testing.assert_close(model(ids, layout), expected, atol=0.05, rtol=0.05)
