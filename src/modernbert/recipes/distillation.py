"""Learning from a larger model while pretraining: the settings, and the teacher that they name.

Everything that can be wrong with a teacher shows before anything is prepared.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from modernbert import hub, runtime
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ConfigError
from modernbert.model.checkpoint import CONFIG, read_architecture, read_config
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.runtime import Precision
from modernbert.train.distillation import Distillation

VARIANTS = 16
"""Of a compiled layer: first, local and global; the student's in training and validation, the teacher's."""


@dataclass(frozen=True, kw_only=True)
class DistillationSettings:
    """From which teacher a run learns besides its text, and how much.

    What is minimised is `(1 - weight) * cross-entropy + weight * divergence`, at the masked positions, and
    `hidden_weight * distance` of the hidden states of all tokens; see `train.distillation`.

    Attributes:
        teacher: Folder or hub id of a masked-LM model with the run's vocabulary.
        revision: Branch, tag or commit on the hub; None: its main branch.
        weight: Share of the KL divergence from the teacher's guesses.
        temperature: Divides the logits of both before the divergence, which is then multiplied by its square;
            above 1, what the teacher holds unlikely counts more.
        hidden_weight: Of the squared distance between the final hidden states, scaled to length 1, the
            student's going through a learned linear map that the finished model does not have; 0: none.
        dtype: Of the teacher's weights and products; `auto`: bf16 where the run computes in it.
    """

    teacher: str
    revision: str | None = None
    weight: float = 0.5
    temperature: float = 1.0
    hidden_weight: float = 0.0
    dtype: Precision = "auto"

    def __post_init__(self) -> None:
        rules = {
            "weight": (0 <= self.weight <= 1, "at least 0 and at most 1"),
            "temperature": (self.temperature > 0, "above 0"),
            "hidden_weight": (self.hidden_weight >= 0, "at least 0"),
        }
        for key, (is_right, rule) in rules.items():
            if not is_right:
                raise ConfigError(f"`{key}` is {getattr(self, key)}; it must be {rule}")
        if not self.weight and not self.hidden_weight:
            raise ConfigError(
                "`weight` and `hidden_weight` are 0; one must be above 0, or nothing is learnt from the "
                "teacher; raise one, or leave the section out"
            )


def read_teacher(settings: DistillationSettings, student: EncoderConfig, longest: int) -> EncoderConfig:
    """Return a teacher's shape, from its `config.json` alone.

    Args:
        settings: Name it.
        student: Shape of the model that is to learn from it.
        longest: Tokens of the longest sequence that it must read.

    Raises:
        CheckpointError: It cannot be found or read.
        ConfigError: It is no masked-LM model, has another number of tokens, or reads no such sequences.
    """
    name = f"`distillation.teacher` `{settings.teacher}`"
    folder = hub.find(settings.teacher, patterns=(CONFIG,), revision=settings.revision)
    kind, wanted = read_architecture(folder), ModernBertForMaskedLM.__name__
    if kind not in (None, wanted):
        raise ConfigError(
            f"{name} is a `{kind}`; it must be a `{wanted}`, which guesses tokens; choose another teacher"
        )
    shape = read_config(folder)
    if shape.vocab_size != student.vocab_size:
        raise ConfigError(
            f"{name} guesses among {shape.vocab_size:,} tokens, and `model.vocab_size` is "
            f"{student.vocab_size:,}; they must be as many; set `model.vocab_size` to {shape.vocab_size}, "
            "with the teacher's tokenizer"
        )
    if shape.max_position_embeddings < longest:
        raise ConfigError(
            f"{name} reads at most {shape.max_position_embeddings:,} tokens, and a phase has sequences of "
            f"{longest:,}; it must read them; lower `sequence_length`, or choose another teacher"
        )
    return shape


def check_vocabulary(settings: DistillationSettings, tokenizer: Tokenizer) -> None:
    """Make sure that a teacher's tokenizer is the run's.

    Raises:
        CheckpointError: The teacher cannot be found.
        InputError: It has no tokenizer, or a damaged one.
        ConfigError: It has another one.
    """
    teachers = Tokenizer.from_pretrained(settings.teacher, revision=settings.revision)
    if teachers.fingerprint != tokenizer.fingerprint:
        raise ConfigError(
            f"`distillation.teacher` `{settings.teacher}` has another tokenizer than the run: "
            f"{_difference(teachers, tokenizer)}; it must have the same; set `tokenizer.path` to the teacher"
        )


def load_distillation(
    settings: DistillationSettings,
    *,
    device: torch.device,
    precision: Precision,
    backend: str,
    compiles: bool,
) -> Distillation:
    """Load a teacher, frozen.

    Args:
        settings: Name it, and say how much it counts.
        device: Where it goes.
        precision: The run's.
        backend: Attention backend of its layers.
        compiles: Whether to compile them.

    Raises:
        CheckpointError: It cannot be found, or is damaged.
    """
    wanted = precision if settings.dtype == "auto" else settings.dtype
    dtype = torch.bfloat16 if runtime.uses_bf16(device, wanted) else torch.float32
    teacher = ModernBertForMaskedLM.from_pretrained(
        settings.teacher, revision=settings.revision, dtype=dtype, device=device
    )
    teacher.requires_grad_(False)
    teacher.model.backend = backend
    if compiles:
        from torch._dynamo import config as compiler  # loads much of torch

        teacher.model.compile_layers()
        # Its layers share their code with the student's, and with it the number of variants that may be.
        compiler.recompile_limit = max(VARIANTS, compiler.recompile_limit)
    return Distillation(
        teacher=teacher,
        weight=settings.weight,
        temperature=settings.temperature,
        hidden_weight=settings.hidden_weight,
    )


def _difference(teachers: Tokenizer, own: Tokenizer) -> str:
    """Say how two tokenizers differ."""
    counts = teachers.vocab_size, own.vocab_size
    if counts[0] != counts[1]:
        return f"it has {counts[0]:,} tokens, the run's {counts[1]:,}"
    spelt = [[it.backend.id_to_token(id) for id in range(counts[0])] for it in (teachers, own)]
    others = [id for id, (one, other) in enumerate(zip(*spelt)) if one != other]
    if others:
        first = others[0]
        return (
            f"{len(others):,} of {counts[0]:,} ids mean other tokens, the first of them {first}: "
            f"{spelt[0][first]!r}, in the run {spelt[1][first]!r}"
        )
    return "its tokens are the same, but it cuts text into them in another way"
