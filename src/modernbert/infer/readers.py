"""Which tools load a checkpoint, and why not: a few rules for each tool, functions of the folder's facts.

The rules follow the tools' sources: transformers 4.48 to 4.57 and 5.23, sentence-transformers 5.3 and 6.2,
text-embeddings-inference 1.9.3, infinity 0.0.78, vLLM of 2026-09. A rule says why its tool fails, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modernbert.infer.facts import POOLING_KEYS, Facts
from modernbert.model.config import GLOBAL, GLOBAL_EVERY, LOCAL, EncoderConfig, regular_layer_types
from modernbert.model.dialects import MODEL_TYPE

SAVE_AGAIN = "load it with this package and `save_pretrained` it, which writes both dialects"

_EVERY = "global_attn_every_n_layers"
_OLDER_POOLING_KEYS = {*POOLING_KEYS.values(), "word_embedding_dimension", "pooling_mode", "include_prompt"}
_OLDER_TRANSFORMER_KEYS = {
    *("max_seq_length", "do_lower_case", "model_args", "tokenizer_args", "config_args", "cache_dir"),
    *("tokenizer_name_or_path", "backend"),
}
_TEI_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("hidden_activation", "max_position_embeddings", "initializer_range", "initializer_cutoff_factor"),
    *("norm_eps", "norm_bias", "pad_token_id", "eos_token_id", "bos_token_id", "cls_token_id"),
    *("sep_token_id", "global_rope_theta", "attention_bias", "attention_dropout", _EVERY),
    *("local_attention", "local_rope_theta", "classifier_activation"),
)


Rule = Callable[[Facts], str | None]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A tool that loads checkpoints: it fails if a refusal applies, and may fail if a doubt does."""

    name: str
    refusals: tuple[Rule, ...]
    doubts: tuple[Rule, ...] = ()
    notes: tuple[Rule, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a tool loads a checkpoint. `reason` says why not; of a yes, what to know."""

    reader: str
    answer: Literal["yes", "no", "unknown"]
    reason: str


def judge(facts: Facts) -> tuple[Verdict, ...]:
    """Say for each reader in `READERS` whether it loads the checkpoint."""
    return tuple(_verdict(reader, facts) for reader in READERS)


def _verdict(reader: Reader, facts: Facts) -> Verdict:
    refusals, doubts, notes = (
        [reason for rule in rules if (reason := rule(facts)) is not None]
        for rules in (reader.refusals, reader.doubts, reader.notes)
    )
    if refusals:
        return Verdict(reader=reader.name, answer="no", reason=". ".join(refusals))
    if doubts:
        return Verdict(reader=reader.name, answer="unknown", reason=". ".join(doubts))
    return Verdict(reader=reader.name, answer="yes", reason=". ".join(notes))


# All readers


def _cannot_load_here(facts: Facts) -> str | None:
    return ". ".join(facts.refusals) or None


def _has_no_tokenizer(facts: Facts) -> str | None:
    return "the weights alone: there is no tokenizer" if facts.tokenizer is None else None


def _has_no_config(facts: Facts) -> str | None:
    return None if facts.settings else "there is no whole `config.json`"


def _has_no_weights(facts: Facts) -> str | None:
    if facts.tensors or facts.pickles or facts.adapter is not None:
        return None
    return "there are no whole weights"


def _is_another_model(facts: Facts) -> str | None:
    kind = facts.settings.get("model_type")
    if kind == MODEL_TYPE or not facts.settings:
        return None
    return f"its `model_type` is {kind!r}, of which these rules know nothing"


def _is_not_understood(facts: Facts) -> str | None:
    if facts.encoder is not None or not facts.settings or _is_another_model(facts):
        return None
    return "its `config.json` describes what this package does not understand"


def _has_pickles_only(facts: Facts) -> str | None:
    if facts.tensors or not facts.pickles:
        return None
    return f"`{facts.pickles[0]}` is a pickle, which is not opened here"


def _is_an_adapter_alone(facts: Facts) -> str | None:
    if facts.tensors or facts.pickles or facts.adapter is None:
        return None
    base = facts.adapter.get("base_model_name_or_path")
    return f"it is an adapter alone, which needs PEFT and its base model, `{base}`"


# transformers 4, and what stands on it


def _takes_other_values(facts: Facts) -> str | None:
    """It puts its defaults in place of keys that only the second dialect gives, and says nothing."""
    if facts.encoder is None:
        return None
    settings, encoder = facts.settings, facts.encoder
    global_theta = settings.get("global_rope_theta", EncoderConfig.global_rope_theta)
    local_theta = settings.get("local_rope_theta", EncoderConfig.local_rope_theta)
    width = settings.get("local_attention", 2 * EncoderConfig.window)  # both sides; an odd one counts as even
    taken = {
        "global_rope_theta": (global_theta, encoder.global_rope_theta),
        "local_rope_theta": (global_theta if local_theta is None else local_theta, encoder.local_rope_theta),
        "local_attention": (width and width // 2 * 2, 2 * encoder.window),
    }
    wrong = [
        f"`{key}` for {theirs} (it is {ours})" for key, (theirs, ours) in taken.items() if theirs != ours
    ]
    return f"it silently takes {', '.join(wrong)}; {SAVE_AGAIN}" if wrong else None


def _takes_another_pattern(facts: Facts) -> str | None:
    """It makes every n-th layer global, with n = 3 if the file has none."""
    if facts.encoder is None or not facts.has_regular_layers:
        return None
    every = facts.settings.get(_EVERY, GLOBAL_EVERY)
    if every and regular_layer_types(facts.encoder.num_hidden_layers, every) == facts.encoder.layer_types:
        return None
    return f"it makes every n-th layer global with n = {every}, which is another pattern; {SAVE_AGAIN}"


def _needs_regular_layers(facts: Facts) -> str | None:
    if facts.has_regular_layers:
        return None
    return "it needs every n-th layer to be global, which these are not"


def _came_after_4_48(facts: Facts) -> str | None:
    later = ("QuestionAnswering", "MultipleChoice")
    return f"`{facts.architecture}` came with a later 4.x" if facts.head in later else None


# transformers 5


def _has_null_local_theta(facts: Facts) -> str | None:
    """It computes with the null; only in the first dialect does null mean: as in global layers."""
    if "local_rope_theta" not in facts.settings or facts.settings["local_rope_theta"] is not None:
        return None
    parameters = _mapping(_mapping(facts.settings.get("rope_parameters")).get(LOCAL))
    if parameters.get("rope_theta") is not None:
        return None
    return f"it cannot compute with a `local_rope_theta` of null; {SAVE_AGAIN}"


def _has_null_pattern(facts: Facts) -> str | None:
    settings = facts.settings
    if settings.get("layer_types") or settings.get(_EVERY, GLOBAL_EVERY) is not None:
        return None
    return f"it cannot compute with a `{_EVERY}` of null without `layer_types`; {SAVE_AGAIN}"


def _has_flat_rope(facts: Facts) -> str | None:
    parameters = facts.settings.get("rope_parameters")
    if parameters is None or _mapping(parameters).keys() <= {GLOBAL, LOCAL}:
        return None
    return f"it needs `rope_parameters` with `{GLOBAL}` and `{LOCAL}`, each with its `rope_theta`"


# sentence-transformers


def _pools_by_default(facts: Facts) -> str | None:
    if facts.modules or facts.head == "SequenceClassification":
        return None
    return "there is no `modules.json`: it embeds with the mean over the tokens"


def _is_a_cross_encoder(facts: Facts) -> str | None:
    return "as a `CrossEncoder`" if facts.head == "SequenceClassification" and not facts.modules else None


def _has_newer_modules(facts: Facts) -> str | None:
    newer = [
        module.type
        for module in facts.modules
        if module.type.startswith("sentence_transformers.")
        and not module.type.startswith("sentence_transformers.models.")
    ]
    if not newer:
        return None
    return (
        f"it has no `{newer[0]}`, which came with 5.4; write `sentence_transformers.models.…` in "
        "`modules.json`, which newer versions read too"
    )


def _has_newer_pooling(facts: Facts) -> str | None:
    """It hands every key to the module's constructor, which refuses those that it does not know."""
    if facts.pooling is None:
        return None
    if isinstance(facts.pooling.get("pooling_mode"), list):
        return "its `pooling_mode` must be one name; leave it out, as the older keys can name several modes"
    unknown = sorted(facts.pooling.keys() - _OLDER_POOLING_KEYS)
    if not unknown and "word_embedding_dimension" in facts.pooling:
        return None
    return (
        f"its pooling settings {'have ' + _some(unknown) if unknown else 'lack a dimension'}; it needs "
        "`word_embedding_dimension` and knows only the older keys, which newer versions read too"
    )


def _has_newer_transformer(facts: Facts) -> str | None:
    unknown = sorted((facts.sentence_settings or {}).keys() - _OLDER_TRANSFORMER_KEYS)
    if not facts.modules or not unknown:
        return None
    return f"`sentence_bert_config.json` has {_some(unknown)}, which it does not know; take them out"


def _has_no_pooling_dimension(facts: Facts) -> str | None:
    keys = ("embedding_dimension", "word_embedding_dimension")
    if facts.pooling is None or any(key in facts.pooling for key in keys):
        return None
    return f"the pooling settings must have `{keys[0]}` or `{keys[1]}`"


def _depends_on_transformers(facts: Facts) -> str | None:
    """Those of these versions that stand on transformers 4 have its limits."""
    faults = [rule(facts) for rule in (_takes_other_values, _takes_another_pattern, _needs_regular_layers)]
    return next((f"with transformers 4: {fault}" for fault in faults if fault), None)


# text-embeddings-inference


def _lacks_keys_of_tei(facts: Facts) -> str | None:
    missing = [key for key in _TEI_KEYS if facts.settings.get(key) is None]
    if not facts.has_regular_layers:  # another rule says that, and there is no remedy
        missing = [key for key in missing if key != _EVERY]
    if not facts.settings or not missing:
        return None
    return f"it needs {_some(missing)} in `config.json`; {SAVE_AGAIN}"


def _lacks_pooling_of_tei(facts: Facts) -> str | None:
    if facts.pooling is None or facts.head in ("SequenceClassification", "TokenClassification"):
        return None
    missing = [key for key in (POOLING_KEYS["cls"], POOLING_KEYS["mean"]) if key not in facts.pooling]
    if missing:
        return f"it needs {_some(missing)} in the pooling settings; add both, or start it with `--pooling`"
    if facts.pooling_modes not in (("cls",), ("mean",)):
        return f"it pools `cls` or `mean`, not {_some(facts.pooling_modes)}"
    return None


def _lacks_length_of_tei(facts: Facts) -> str | None:
    if facts.sentence_settings is None or facts.sentence_settings.get("max_seq_length") is not None:
        return None
    return "it needs `max_seq_length` in `sentence_bert_config.json`; add it"


def _lacks_tokenizer(facts: Facts) -> str | None:
    return "it needs a whole `tokenizer.json`" if facts.tokenizer is None else None


def _has_head_of_no_use(facts: Facts) -> str | None:
    if facts.head in ("", "MaskedLM", "SequenceClassification"):
        return None
    return f"it does not serve `{facts.head}`"


def _lacks_labels_of_tei(facts: Facts) -> str | None:
    missing = [key for key in ("id2label", "label2id") if not facts.settings.get(key)]
    if facts.head != "SequenceClassification" or not missing:
        return None
    return f"it needs {_some(missing)} in `config.json`; name the labels and save again"


def _ignores_dense_bias(facts: Facts) -> str | None:
    if facts.head != "SequenceClassification" or "head.dense.bias" not in facts.tensors:
        return None
    return "it leaves out `head.dense.bias`, and so computes other scores"


def _may_miscount_labels(facts: Facts) -> str | None:
    settings = facts.settings
    if facts.head != "SequenceClassification" or len(_mapping(settings.get("id2label"))) < 2:
        return None
    if settings.get("num_labels") is not None:
        return None
    return "some of its versions expect one label where `config.json` has no `num_labels`; add that"


def _needs_a_pooling_flag(facts: Facts) -> str | None:
    if facts.pooling is not None or facts.head == "SequenceClassification":
        return None
    return "start it with `--pooling cls` or `--pooling mean`: there are no pooling settings"


# vLLM


def _has_no_class_in_vllm(facts: Facts) -> str | None:
    if facts.head in ("", "SequenceClassification", "TokenClassification"):
        return None
    return f"it has no `{facts.architecture}`; it may still embed with the encoder"


def _may_pool_otherwise(facts: Facts) -> str | None:
    if facts.pooling is None or any(key in facts.pooling for key in POOLING_KEYS.values()):
        return None
    return "some of its versions know only `pooling_mode_…` keys, and else pool `[CLS]` (vllm#45995)"


def _had_another_window(facts: Facts) -> str | None:
    return "from 2026-06 on: the window of older versions is one token short (vllm#44040)"


_ALL = (_has_no_config, _has_no_weights)
_UNSURE = (_is_another_model, _is_not_understood, _has_pickles_only, _is_an_adapter_alone)
_TRANSFORMERS_4 = (_takes_other_values, _takes_another_pattern, _needs_regular_layers)
_TRANSFORMERS_5 = (_has_null_local_theta, _has_null_pattern, _has_flat_rope)
_SENTENCE_5 = (_has_newer_modules, _has_newer_pooling, _has_newer_transformer)
_EMBEDS = (_pools_by_default, _is_a_cross_encoder)
_TEI = (
    *(_lacks_keys_of_tei, _needs_regular_layers, _lacks_tokenizer, _has_head_of_no_use, _lacks_labels_of_tei),
    *(_ignores_dense_bias, _lacks_pooling_of_tei, _lacks_length_of_tei),
)

READERS = (
    Reader(
        name="this package",
        refusals=(_cannot_load_here,),
        doubts=(_is_an_adapter_alone,),
        notes=(_has_no_tokenizer,),
    ),
    Reader(
        name="transformers 4.48 to 4.57",
        refusals=(*_ALL, *_TRANSFORMERS_4),
        doubts=_UNSURE,
        notes=(_came_after_4_48,),
    ),
    Reader(name="transformers 5", refusals=(*_ALL, *_TRANSFORMERS_5), doubts=_UNSURE),
    Reader(
        name="sentence-transformers below 5.4",
        refusals=(*_ALL, *_SENTENCE_5),
        doubts=(*_UNSURE, _depends_on_transformers),
        notes=_EMBEDS,
    ),
    Reader(
        name="sentence-transformers 6",
        refusals=(*_ALL, *_TRANSFORMERS_5, _has_no_pooling_dimension),
        doubts=_UNSURE,
        notes=_EMBEDS,
    ),
    Reader(
        name="text-embeddings-inference 1.9",
        refusals=(*_ALL, *_TEI),
        doubts=(*_UNSURE, _may_miscount_labels),
        notes=(_needs_a_pooling_flag,),
    ),
    Reader(
        name="infinity 0.0.78",
        refusals=(*_ALL, *_TRANSFORMERS_4, *_SENTENCE_5, _has_head_of_no_use),
        doubts=_UNSURE,
        notes=_EMBEDS,
    ),
    Reader(
        name="vLLM",
        refusals=_ALL,
        doubts=(*_UNSURE, _has_no_class_in_vllm, _may_pool_otherwise, _needs_regular_layers),
        notes=(_had_another_window,),
    ),
)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _some(names: Iterable[str]) -> str:
    listed = [f"`{name}`" for name in names]
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")
