"""How fast is a packed forward on a CPU (`portable`) beside padded SDPA of the same model and weights?

Peer: transformers' ModernBERT with its SDPA attention, in the same run, in turn. Base shape, random
weights, fp32. Only real tokens are counted.
"""

from __future__ import annotations

import argparse

import torch
import transformers

from benchmarks.common import spread, write
from modernbert import pack
from modernbert.model.config import EncoderConfig
from modernbert.model.dialects import to_published
from modernbert.model.encoder import ModernBertModel
from modernbert.model.init import initialise
from modernbert.runtime import machine_facts, time_in_turn

MIXED = (512, 480, 33, 200, 256, 311, 150, 128, 90, 400, 222, 64, 17, 350, 270, 99)
CASES = {"16 mixed, 17 to 512 tokens": MIXED, "1 x 8,192 tokens": (8192,)}


def build(config: EncoderConfig) -> tuple[ModernBertModel, torch.nn.Module]:
    """Two models of equal weights: ours and transformers'."""
    ours = ModernBertModel(config, backend="portable").eval()
    initialise(ours, seed=0)
    published = transformers.ModernBertConfig(**to_published(config, "ModernBertModel"))
    theirs = transformers.ModernBertModel._from_config(published, attn_implementation="sdpa").eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@torch.no_grad()
def measure(preset: str, repetitions: int) -> list[dict[str, object]]:
    config = EncoderConfig.preset(preset)
    ours, theirs = build(config)
    rows: list[dict[str, object]] = []
    for case, lengths in CASES.items():
        texts = [torch.randint(5, 50_000, (length,)) for length in lengths]
        ids, layout = pack(texts)
        padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=config.pad_token_id)
        mask = (torch.arange(layout.longest) < torch.tensor(lengths)[:, None]).long()
        outputs: dict[str, torch.Tensor] = {}

        def packed(ids=ids, layout=layout, outputs=outputs) -> None:
            outputs["packed"] = ours(ids, layout)

        def with_padding(padded=padded, mask=mask, outputs=outputs) -> None:
            outputs["padded"] = theirs(padded, attention_mask=mask).last_hidden_state

        engines = {"modernbert, packed, portable": packed, "transformers, padded, SDPA": with_padding}
        seconds = time_in_turn(engines, repetitions, torch.device("cpu"))
        deviation = (outputs["packed"] - outputs["padded"][mask.bool()]).abs().max().item()
        for name, times in seconds.items():
            rows.append(
                {"case": case, "engine": name, **spread(layout.num_tokens, times), "deviation": deviation}
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="base")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    machine = machine_facts(torch.device("cpu"))
    rows = measure(arguments.preset, arguments.repetitions)
    write(
        "attention_cpu",
        "packed portable attention against padded SDPA, one CPU, fp32, tokens/s",
        rows,
        machine,
        preset=arguments.preset,
        peer=f"transformers {transformers.__version__}",
    )


if __name__ == "__main__":
    main()
