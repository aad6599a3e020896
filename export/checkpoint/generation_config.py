"""generation_config.json: the runtime follows a key, or it changes no answer, or the export refuses it by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...graphs import CheckpointError, strict_json
from ...graphs.sampling import Sampling, ids

NAME = "generation_config.json"
#: Keys of limits and ends, which are fields of `manifest.GenerationDefaults`.
LIMITS = ("eos_token_id", "max_length", "max_new_tokens")
#: Keys that are fields of `Sampling` under another name.
RENAMED = {"stop_strings": "stop"}
DONE = {*LIMITS, *RENAMED, *(field.name for field in dataclasses.fields(Sampling))} - {*RENAMED.values()}
#: Keys that change no answer: further results of `generate`, the storage of its cache, faster ways to the same tokens
#: (drafts that the model itself checks), and ids that a call with a prompt does not use.
HARMLESS = {
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "return_dict_in_generate",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "continuous_batching_config",
    "disable_compile",
    "low_memory",
    "max_cache_len",
    "prefill_chunk_size",
    "use_cache",
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_lookbehind",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "prompt_lookup_num_tokens",
    "speculation_type",
    "target_lookbehind",
    "use_mtp",
    "bos_token_id",
    "decoder_start_token_id",
    "pad_token_id",
    "_from_model_config",
    "transformers_version",
}
#: Keys that change answers and that the runtime does not follow, with the values besides null that change nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "assistant_ensemble_weight": (),
    "constraints": (),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "forced_bos_token_id": (),
    "guidance_scale": (1,),
    "is_assistant": (False,),
    "max_time": (),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "remove_invalid_values": (False,),
    "renormalize_logits": (False,),
    "sequence_bias": (),
    "token_healing": (False,),
    "top_h": (),
    "typical_p": (1,),
    "watermarking_config": (),
}


def sampling(settings: Mapping[str, Any]) -> Sampling:
    """The defaults that generation_config.json names; keys that transformers does not know are left out, as there.

    Raises:
        CheckpointError: for each key that is not supported or whose value is invalid.
    """
    problems = [
        f"{name} is {settings[name]!r:.80}, which changes answers and is not supported;"
        f" remove it or set it to {' or '.join(map(repr, (None, *neutral)))}"
        for name, neutral in REFUSED.items()
        if settings.get(name) is not None and settings[name] not in neutral
    ]
    named = {RENAMED.get(key, key): settings[key] for key in DONE - {*LIMITS} if settings.get(key) is not None}
    if not named.get("do_sample") and named.get("temperature") == 0:
        del named["temperature"]  # no draw asks for it, and no later one could use it
    for field in dataclasses.fields(Sampling):
        if field.name in named:
            named[field.name] = _as_json(field.metadata["kind"].normalize(named[field.name]))
    options = strict_json.read(Sampling, named, "", problems)
    problems += options.problems() if options and not problems else []
    _refuse(problems)
    return options


def end_ids(settings: Mapping[str, Any], default: int | list[int] | None) -> tuple[int, ...]:
    """The ids that end an answer: none if generation_config.json says null, `default` if it does not name them."""
    value = settings.get("eos_token_id", default)
    tokens = ids(value) if value is not None else ()
    if not (isinstance(tokens, tuple) and all(type(token) is int and token >= 0 for token in tokens)):
        _refuse([f"eos_token_id is {value!r:.80}; give an id or a list of ids"])
    return tokens


def limit(settings: Mapping[str, Any], name: str) -> int | None:
    """`max_new_tokens` or `max_length`, None if it is not given."""
    value = settings.get(name)
    if value is not None and not (type(value) is int and value > 0):
        _refuse([f"{name} is {value!r:.80}; give an integer of 1 or more"])
    return value


def _as_json(value: Any) -> Any:
    """Tuples as the lists that JSON has for them."""
    return [_as_json(item) for item in value] if isinstance(value, tuple) else value


def _refuse(problems: list[str]) -> None:
    if problems:
        raise CheckpointError(f"{NAME} cannot be followed:\n" + "\n".join(f"  {problem}" for problem in problems))
