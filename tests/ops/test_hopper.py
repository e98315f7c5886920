"""Foreign kernels as operators: found, refused, traced; on a Hopper GPU, as exact as their dtype."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

from modernbert.errors import BackendError
from modernbert.layout import SequenceLayout
from modernbert.model.config import EncoderConfig
from modernbert.model.encoder import ModernBertModel
from modernbert.ops import attention as table
from modernbert.ops import contest
from modernbert.ops.attention import BACKENDS, Backend, attention, choose, parse
from modernbert.ops.hopper import fa3, fa4, operators

CUDA = torch.device("cuda", 0)
KERNELS = ("fa3", "fa4")
KERNELS_AND_TORCHS = ("varlen", *KERNELS)
MODULES: Mapping[str, ModuleType] = {"fa3": fa3, "fa4": fa4}
CHANGING = [(5, 7, 9), (3, 8), (40, 30, 2, 2, 2), (100,), (128, 1), (300, 17)]


def draw(layout: SequenceLayout, dtype: torch.dtype, width: int, heads: int = 2) -> list[Tensor]:
    """Queries, keys, values and a gradient; as in the model, values are a view between others."""
    generator = torch.Generator().manual_seed(layout.num_tokens)
    shape = (layout.num_tokens, 4, heads, width)
    drawn = torch.randn(shape, generator=generator).to(dtype).to(layout.device)
    return [*(x.contiguous() for x in drawn.unbind(1)[:2]), *drawn.unbind(1)[2:]]


def with_gradients(run: Any, q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = run(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_out)]


def of(backend: str, layout: SequenceLayout, window: int | None) -> Any:
    return lambda *qkv: attention(*qkv, layout, window, backend)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No choice of one test is another's."""
    caches = (table._automatic, table._named, table._say, fa3._trouble, fa4._trouble, fa4._interface)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that seems to have a Hopper GPU, without kernels for it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(fa3, "_is_loaded", lambda: False)
    monkeypatch.setattr(fa3, "_homes", lambda package: iter(()))
    monkeypatch.setattr(fa4, "is_installed", lambda: False)
    return monkeypatch


class TestRefusals:
    @pytest.mark.parametrize("name", KERNELS)
    def test_what_no_kernel_serves(self, name: str, hopper: pytest.MonkeyPatch) -> None:
        refusal = MODULES[name].refusal
        assert "CUDA devices only; the tensors are on `cpu`" in refusal(
            torch.device("cpu"), torch.bfloat16, 64
        )
        assert "bfloat16 or float16 only; the tensors are torch.float32" in refusal(CUDA, torch.float32, 64)
        assert "must be 64 or 128; it is 32" in refusal(CUDA, torch.bfloat16, 32)
        hopper.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        hopper.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
        assert "needs a Hopper GPU (H100, H200), compute capability 9.0; `NVIDIA A100` is older" in refusal(
            CUDA, torch.bfloat16, 64
        )

    def test_absence_names_the_remedy(self, hopper: pytest.MonkeyPatch) -> None:
        why = fa3.refusal(CUDA, torch.bfloat16, 64)
        assert why is not None
        assert "pip install --no-deps xformers==0.0.34" in why
        assert "docs/guides/hopper.md" in why
        with pytest.raises(BackendError, match=r"`fa4` cannot serve: .*not installed; `pip install 'modernb"):
            choose("fa4", CUDA, torch.bfloat16, 64)

    def test_fa3_is_for_hopper_alone(self, hopper: pytest.MonkeyPatch) -> None:
        hopper.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
        assert "`NVIDIA H100` is newer; `fa4` serves it" in str(fa3.refusal(CUDA, torch.bfloat16, 64))

    def test_a_library_that_does_not_load(self, hopper: pytest.MonkeyPatch, tmp_path: Path) -> None:
        library = tmp_path / "_C.so"
        library.write_bytes(b"no library")
        hopper.setattr(fa3, "find", lambda: library)
        why = str(fa3.refusal(CUDA, torch.bfloat16, 64))
        assert f"`{library}` does not load: " in why
        assert "docs/guides/hopper.md" in why

    def test_a_package_that_does_not_load(self, hopper: pytest.MonkeyPatch) -> None:
        hopper.setattr(fa4, "is_installed", lambda: True)
        hopper.setitem(sys.modules, "flash_attn", None)
        assert "flash-attn-4 does not load: " in str(fa4.refusal(CUDA, torch.float16, 128))

    def test_another_version(self, hopper: pytest.MonkeyPatch) -> None:
        hopper.setattr(fa4, "is_installed", lambda: True)
        for name in ("flash_attn", "flash_attn.cute", "flash_attn.cute.interface"):
            hopper.setitem(sys.modules, name, ModuleType(name))
        assert "this version of flash-attn-4 is another" in str(fa4.refusal(CUDA, torch.float16, 128))

    def test_no_deterministic_backward(self, hopper: pytest.MonkeyPatch) -> None:
        hopper.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
        hopper.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        x = torch.zeros(3, 1, 64)
        with pytest.raises(BackendError, match="no deterministic backward pass on this GPU; choose `varlen`"):
            fa4._backward(x, x, x, x, x, x[..., 0].T, torch.tensor([0, 3]), 3, None)


class TestFinding:
    def test_the_library_without_importing_its_package(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for path in ("xformers/flash_attn_3/_C.so", "xformers/__init__.py"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text("raise RuntimeError('imported')")
        monkeypatch.syspath_prepend(tmp_path)
        assert fa3.find() == tmp_path / "xformers/flash_attn_3/_C.so"
        built = tmp_path / "flash_attn_3/_C.abi3.so"
        built.parent.mkdir()
        built.touch()
        assert fa3.find() == built
        assert "xformers" not in sys.modules

    def test_version_4_without_importing_version_2(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "flash_attn").mkdir()
        (tmp_path / "flash_attn/__init__.py").write_text("raise RuntimeError('imported')")
        monkeypatch.syspath_prepend(tmp_path)
        assert not fa4.is_installed()
        (tmp_path / "flash_attn/cute").mkdir()
        (tmp_path / "flash_attn/cute/interface.py").touch()
        assert fa4.is_installed()


def _weights(q: Tensor, k: Tensor, offsets: Tensor, window: int | None) -> Tensor:
    """The softmax `[N, T, T]`, in one piece for all sequences."""
    layout = SequenceLayout.of(offsets.diff().tolist())
    owners, places = layout.sequence_ids, layout.positions
    hidden = owners[:, None] != owners
    if window is not None:
        hidden |= (places[:, None] - places).abs() > window
    scores = torch.einsum("inh,jnh->nij", q, k) * q.shape[-1] ** -0.5
    return scores.masked_fill(hidden, float("-inf")).softmax(-1)


def _plain_forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, longest: int, window: int | None
) -> tuple[Tensor, Tensor]:
    out = torch.einsum("nij,jnh->inh", _weights(q, k, offsets, window), v)
    return out.contiguous(), q.new_zeros((q.shape[1], q.shape[0]), dtype=torch.float32)


def _plain_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    offsets: Tensor,
    longest: int,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """No gradient is recorded below an operator: by hand."""
    weights = _weights(q, k, offsets, window)
    inner = torch.einsum("inh,jnh->nij", grad_out, v) - torch.einsum("inh,inh->ni", grad_out, out)[..., None]
    scores = weights * inner * q.shape[-1] ** -0.5
    grads = (
        torch.einsum("nij,jnh->inh", scores, k),
        torch.einsum("nij,inh->jnh", scores, q),
        torch.einsum("nij,inh->jnh", weights, grad_out),
    )
    return tuple(x.contiguous() for x in grads)  # type: ignore[return-value]


STAND_IN = operators.register("stand_in", _plain_forward, _plain_backward, device_type="cpu")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend for the CPU that goes the way of the foreign kernels."""
    monkeypatch.setitem(BACKENDS, "stand_in", Backend(STAND_IN, lambda *_: None))
    return "stand_in"


class TestOperators:
    @pytest.mark.parametrize("window", [None, 8])
    def test_torch_finds_nothing_wrong(self, window: int | None) -> None:
        layout = SequenceLayout.of([5, 1, 30])
        q, k, v, _ = draw(layout, torch.float32, 16)
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        torch.library.opcheck(
            torch.ops.modernbert.stand_in.default, (*leaves, layout.offsets, layout.longest, window)
        )

    @pytest.mark.parametrize("window", [None, 8])
    def test_gradients(self, stand_in: str, window: int | None) -> None:
        layout = SequenceLayout.of([5, 1, 30])
        tensors = draw(layout, torch.float64, 16)
        expected = with_gradients(of("plain", layout, window), *tensors)
        for ours, plain in zip(with_gradients(of(stand_in, layout, window), *tensors), expected, strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("name", KERNELS)
    def test_shapes_without_a_gpu(self, name: str) -> None:
        layout = SequenceLayout.of([5, 1, 30]).worked_out()
        with FakeTensorMode(allow_non_fake_inputs=True):
            q, k, v, grad_out = (torch.empty(36, 2, 64, dtype=torch.bfloat16) for _ in range(4))
            out, *grads = with_gradients(lambda *qkv: BACKENDS[name].run(*qkv, layout, 64), q, k, v, grad_out)
        for x in (out, *grads):
            assert (x.shape, x.dtype, x.is_contiguous()) == (q.shape, q.dtype, True)

    @pytest.mark.parametrize("name", KERNELS)
    def test_there_is_no_kernel_for_a_cpu(self, name: str) -> None:
        layout = SequenceLayout.of([4])
        q, k, v, _ = draw(layout, torch.bfloat16, 64)
        with pytest.raises(NotImplementedError, match=f"modernbert::{name}"):
            BACKENDS[name].run(q, k, v, layout, None)


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Why each rival refuses: None for none; the test says."""
    monkeypatch.setattr(table, "RIVALS", KERNELS_AND_TORCHS)
    refusals: dict[str, str | None] = dict.fromkeys(table.RIVALS)
    for name in table.RIVALS:
        backend = Backend(BACKENDS[name].run, lambda *_, name=name: refusals[name])
        monkeypatch.setitem(BACKENDS, name, backend)
    return refusals


class TestChoice:
    def test_one_rival_is_not_measured(
        self,
        rivals: dict[str, str | None],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        rivals |= {"fa3": "it is Sunday", "fa4": "it is Sunday"}
        monkeypatch.setattr(contest, "measure", None)
        with caplog.at_level(logging.INFO, "modernbert"):
            assert choose("auto", CUDA, torch.bfloat16, 64) == "varlen"
            with torch.no_grad():
                assert choose("auto", CUDA, torch.bfloat16, 64, True) == "varlen"
        assert caplog.messages == [
            "attention backend for cuda:0, torch.bfloat16: varlen; not fa3, fa4: it is Sunday"
        ]

    def test_the_fastest_of_each_kind_is_measured_once(
        self,
        rivals: dict[str, str | None],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        rivals["fa4"] = "it is Sunday"
        measured = []

        def measure(runs, device, dtype, head_dim, *, window, has_backward):
            measured.append((window, has_backward))
            return {"varlen": 2.0 if window is None else 1.0, "fa3": 1.5}

        monkeypatch.setattr(contest, "measure", measure)
        with caplog.at_level(logging.INFO, "modernbert"):
            for _ in range(2):
                assert choose("auto", CUDA, torch.bfloat16, 64) == "fa3"
                assert choose("auto", CUDA, torch.bfloat16, 64, True) == "varlen"
        assert measured == [(None, True), (64, True)]
        assert caplog.messages == [
            "attention backend for cuda:0, torch.bfloat16: fa3 for global layers, varlen for windowed ones "
            "(forward and backward, ms for 32,768 tokens: global varlen 2.00, fa3 1.50; "
            "windowed varlen 1.00, fa3 1.50); not fa4: it is Sunday"
        ]
        with torch.no_grad():
            choose("auto", CUDA, torch.bfloat16, 64)
        assert measured[2:] == [(None, False), (64, False)]

    def test_determinism_takes_the_first(
        self, rivals: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(contest, "measure", None)
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        assert choose("auto", CUDA, torch.bfloat16, 64) == "varlen"

    def test_a_pair(self, rivals: dict[str, str | None]) -> None:
        assert parse("fa3+varlen") == ("fa3", "varlen")
        assert parse("fa4") == ("fa4", "fa4")
        assert choose("fa3+varlen", CUDA, torch.bfloat16, 64) == "fa3"
        assert choose("fa3+varlen", CUDA, torch.bfloat16, 64, True) == "varlen"
        rivals["varlen"] = "it is Sunday"
        table._named.cache_clear()
        with pytest.raises(BackendError, match="`varlen` cannot serve: it is Sunday"):
            choose("fa3+varlen", CUDA, torch.bfloat16, 64)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("fa5", "unknown attention backend `fa5`; did you mean `fa"),
            ("fa3+varlan", "unknown attention backend `varlan`; did you mean `varlen`"),
            ("fa3+auto", "unknown attention backend `auto`"),
            ("fa3+", "unknown attention backend ``"),
            ("fa3+fa4+varlen", r"names 3; it must be one, or two joined by `\+`"),
        ],
    )
    def test_no_name(self, name: str, message: str) -> None:
        with pytest.raises(BackendError, match=message):
            choose(name, CUDA, torch.bfloat16, 64)

    def test_layers_of_a_model_take_their_half(self, stand_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[str, int | None]] = []
        for name in (stand_in, "plain"):
            run = BACKENDS[name].run
            monkeypatch.setitem(
                BACKENDS,
                name,
                Backend(
                    lambda *given, name=name, run=run: (asked.append((name, given[-1])), run(*given))[1],
                    lambda *_: None,
                ),
            )
        model = ModernBertModel(EncoderConfig.preset("tiny"), backend="stand_in+plain").eval()
        model(torch.arange(5, 9), SequenceLayout.of([4]))
        plans = model.config.layer_plan
        assert asked == [(stand_in if it.window is None else "plain", it.window) for it in plans]


def compile_whole(model: ModernBertModel, backend: str) -> Any:
    torch._dynamo.reset()
    counters.clear()
    return torch.compile(model, fullgraph=True, dynamic=True, backend=backend)


def step(run: Any, model: ModernBertModel, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Forward and backward of one batch: hidden states, and the gradient of the first layer's attention."""
    device, generator = model.final_norm.weight.device, torch.Generator().manual_seed(sum(lengths))
    layout = SequenceLayout.of(lengths, device).worked_out()
    ids = torch.randint(5, 500, (layout.num_tokens,), generator=generator).to(device)
    out = run(ids, layout)
    model.zero_grad()
    # Not the sum of squares: a norm leaves nothing of its gradient but roundings.
    (out.float() * torch.randn(out.shape, generator=generator).to(device)).mean().backward()
    return out.detach().float(), model.layers[0].attn.Wqkv.weight.grad.float()


def graphs_of(compiled: Any, model: ModernBertModel, batches: list[tuple[int, ...]]) -> list[int]:
    """How many graphs there are after each batch; each computed as the model does without a compiler."""
    graphs = []
    for lengths in batches:
        for ours, plain in zip(step(compiled, model, lengths), step(model, model, lengths), strict=True):
            error = torch.linalg.vector_norm(ours - plain) / torch.linalg.vector_norm(plain)
            assert error <= 5e-2
        graphs.append(counters["stats"]["unique_graphs"])
    return graphs


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["stand_in", "auto"])
def test_the_whole_model_is_one_graph(backend: str, stand_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where `auto` decides while the compiler traces."""
    monkeypatch.setattr(table, "RIVALS", ("stand_in",))
    model = ModernBertModel(EncoderConfig.preset("tiny"), backend=backend).eval()
    graphs = graphs_of(compile_whole(model, "aot_eager"), model, CHANGING)
    assert graphs == [1] * len(CHANGING)


@pytest.fixture
def kernel(request: pytest.FixtureRequest) -> str:
    why = BACKENDS[request.param].refusal(CUDA, torch.bfloat16, 64)
    if why is not None:
        pytest.skip(f"{request.param}: {why}")
    return str(request.param)


each_kernel = pytest.mark.parametrize("kernel", KERNELS, indirect=True)
KINDS = [(torch.bfloat16, 64), (torch.bfloat16, 128), (torch.float16, 64)]
ON_GPU = [[1, 2, 63, 64, 65, 128, 129, 200, 1024], [8192], [8192, 1, 129], [1], [3] * 300]


# Of flash-attn-4 and the compilers, about themselves.
of_others = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@of_others
@pytest.mark.gpu
@each_kernel
class TestKernels:
    @pytest.mark.parametrize("window", [None, 64, 8])
    @pytest.mark.parametrize(("dtype", "width"), KINDS, ids=str)
    @pytest.mark.parametrize("lengths", ON_GPU, ids=lambda it: f"{len(it)} to {max(it)}")
    def test_as_near_to_the_definition_as_the_dtype(
        self, kernel: str, lengths: list[int], dtype: torch.dtype, width: int, window: int | None
    ) -> None:
        """Against fp32: no more than twice what the plain definition errs in the same dtype."""
        layout = SequenceLayout.of(lengths, "cuda")
        half = draw(layout, dtype, width)
        exact = with_gradients(of("plain", layout, window), *(x.float() for x in half))
        rough = with_gradients(of("plain", layout, window), *half)
        fast = with_gradients(of(kernel, layout, window), *half)
        for ours, plain, truth in zip(fast, rough, exact, strict=True):
            # The gradients of a token that sees but itself are zero.
            size = torch.linalg.vector_norm(truth) + 1e-2 * truth.numel() ** 0.5
            errors = [torch.linalg.vector_norm(x.float() - truth) / size for x in (ours, plain)]
            assert errors[0] <= 2 * errors[1] + 5e-4
            most = [(x.float() - truth).abs().max() for x in (ours, plain)]
            assert most[0] <= 2 * most[1] + 1e-3

    @pytest.mark.parametrize("window", [None, 64])
    def test_no_sequence_sees_its_neighbour(self, kernel: str, window: int | None) -> None:
        layout = SequenceLayout.of([65, 64, 66, 3, 1000], "cuda")
        q, k, v, grad_out = draw(layout, torch.bfloat16, 64)
        before = with_gradients(of(kernel, layout, window), q, k, v, grad_out)
        changed = slice(layout.starts[1], layout.starts[2])
        for x in (q, k, v, grad_out):
            x[changed] = x[changed] * 100 + 7
        after = with_gradients(of(kernel, layout, window), q, k, v, grad_out)
        others = layout.sequence_ids != 1
        assert torch.equal(before[0][others], after[0][others])
        for one, other in zip(before[1:], after[1:], strict=True):
            torch.testing.assert_close(one[others], other[others], rtol=2e-2, atol=1e-3)

    @pytest.mark.parametrize("window", [None, 64])
    def test_packed_equals_separate(self, kernel: str, window: int | None) -> None:
        layout = SequenceLayout.of([1, 2, 64, 65, 129, 700], "cuda")
        q, k, v, _ = draw(layout, torch.bfloat16, 64)
        packed = attention(q, k, v, layout, window, kernel)
        for i, part in enumerate(layout.split(packed)):
            alone = SequenceLayout.of([layout.lengths[i]], "cuda")
            one = (layout.split(x)[i] for x in (q, k, v))
            torch.testing.assert_close(part, attention(*one, alone, window, kernel), rtol=2e-2, atol=2e-2)

    @pytest.mark.parametrize("window", [None, 64])
    def test_deterministic(self, kernel: str, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        layout = SequenceLayout.of([1000, 3, 4000, 8192], "cuda")
        tensors = draw(layout, torch.bfloat16, 64, heads=4)
        torch.use_deterministic_algorithms(True)
        try:
            first, *others = (with_gradients(of(kernel, layout, window), *tensors) for _ in range(4))
        finally:
            torch.use_deterministic_algorithms(False)
        for other in others:
            assert all(map(torch.equal, first, other))

    def test_an_expanded_gradient(self, kernel: str) -> None:
        layout = SequenceLayout.of([70, 5], "cuda")
        q, k, v, _ = draw(layout, torch.bfloat16, 64)
        ones = torch.ones_like(q)
        expanded = torch.ones((), dtype=q.dtype, device="cuda").expand(q.shape)
        first, second = (with_gradients(of(kernel, layout, None), q, k, v, it) for it in (ones, expanded))
        for one, other in zip(first, second, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-3)

    @pytest.mark.slow
    @pytest.mark.compile
    def test_the_whole_model_is_one_graph(self, kernel: str) -> None:
        shape = EncoderConfig.preset(
            "tiny", hidden_size=256, num_attention_heads=4, intermediate_size=384, num_hidden_layers=4
        )
        model = ModernBertModel(shape, backend=f"{kernel}+{kernel}").eval().cuda().bfloat16()
        compiled = compile_whole(model, "inductor")
        batches = [*CHANGING, (1024, 1), (129, 700), (2,), (500,) * 4]
        assert graphs_of(compiled, model, batches) == [1] * len(batches)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        for number in range(200):
            step(compiled, model, (1 + 37 * number % 1000, 2 + number % 130, 400))
        assert counters["stats"]["unique_graphs"] == 1
        assert torch.cuda.memory_allocated() <= before + 2**20


@of_others
@pytest.mark.gpu
def test_measuring_chooses_what_serves_and_uses_up_no_random_numbers() -> None:
    serving = [it for it in table.RIVALS if BACKENDS[it].refusal(CUDA, torch.bfloat16, 64) is None]
    if len(serving) < 2:
        pytest.skip(f"only {serving} can serve")
    state = torch.cuda.get_rng_state()
    for is_windowed in (False, True):
        assert choose("auto", CUDA, torch.bfloat16, 64, is_windowed) in serving
    assert torch.equal(state, torch.cuda.get_rng_state())
