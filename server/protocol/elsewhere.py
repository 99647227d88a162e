"""Fields of other servers' APIs that this server does not have, as data.

Sources, read in November 2026: the types of OpenAI's SDK 3.54; the request classes of vLLM, SGLang,
text-generation-webui and TGI; the request schema of llama.cpp's server; Ollama's and LM Studio's documents.

- REFUSED: the field changes answers elsewhere, and cannot here. Only values that ask for nothing are accepted.
- TUNING: the field is a setting of a REFUSED field, and has no effect while that field is off.
- HARMLESS: no answer depends on the field.

Another server's name for one of our fields is a field of ``GenerationRequest``. All other keys are unknown: the header
``x-griffin-ignored`` names them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.protocol.fields import refuse


@dataclass(frozen=True, slots=True)
class Refused:
    """A field that is not supported.

    nothing: values, besides null, that ask for nothing, or for what the server does anyway.
    instead: what to send instead, for the error's text.
    """

    nothing: tuple[Any, ...] = ()
    instead: str = ""


@dataclass(frozen=True, slots=True)
class Tuning:
    """A field that has no effect while the mechanism it belongs to is off.

    of: fields that turn the mechanism on; all are in REFUSED.
    usual: the field's default values elsewhere. Clients send them without turning the mechanism on.
    """

    of: tuple[str, ...]
    usual: tuple[Any, ...] = ()


_NEVER = Refused()
_OFF = Refused((False,))
_ON = Refused((True,))
_ZERO = Refused((0, False))
_ONE = Refused((1,))
_NO_TEXT = Refused(("",))
_NO_LIST = Refused(([],))
_NO_OBJECT = Refused(({},))
_NONE = Refused(("", [], {}))
# An empty schema does ask for something: any JSON.
_NO_TEXT = Refused(("", []))


def _but(table: Mapping[str, Refused], *names: str) -> Mapping[str, Refused]:
    """The table without the fields that an endpoint has."""
    return {name: field for name, field in table.items() if name not in names}


REFUSED: Mapping[str, Refused] = {
    # The form of the answer.
    "format": Refused(("", []), "response_format"),
    "grammar": Refused(("", []), "structured_outputs.grammar"),
    "grammar_string": Refused(("", []), "structured_outputs.grammar"),
    "grammar_lazy": _OFF,
    "grammar_triggers": _NO_LIST,
    "json_schema": Refused(("", []), "response_format"),
    "regex": Refused(("", []), "structured_outputs.regex"),
    "ebnf": Refused(("", []), "structured_outputs.grammar"),
    "structural_tag": Refused(("", [], {}), "structured_outputs.grammar"),
    "guided_json": Refused(("", []), "structured_outputs.json"),
    "guided_regex": Refused(("", []), "structured_outputs.regex"),
    "guided_choice": Refused(([],), "structured_outputs.choice"),
    "guided_grammar": Refused(("", []), "structured_outputs.grammar"),
    "guided_json_object": Refused((False,), "structured_outputs.json_object"),
    "guided_whitespace_pattern": Refused(("",), "structured_outputs.json, whose JSON has one line"),
    "guided_decoding_backend": _NO_TEXT,
    "n_indent": _ZERO,
    # Tools, other media, other sources.
    "functions": Refused(([],), "tools, in a conversation"),
    "function_call": Refused(("none", "auto"), "tool_choice, in a conversation"),
    "modalities": Refused((["text"],)),
    "audio": _NEVER,
    "images": _NO_LIST,
    "web_search_options": _NEVER,
    "moderation": _NEVER,
    "documents": _NO_LIST,
    "data_sources": _NO_LIST,
    "mm_processor_kwargs": _NO_OBJECT,
    "media_io_kwargs": _NO_OBJECT,
    # Reasoning, and how much is said.
    "reasoning": Refused(({}, {"effort": None}, {"effort": "none"}, {"enabled": False})),
    "think": _OFF,
    "thinking": Refused(({"type": "disabled"}, False)),
    "enable_thinking": Refused((), '"chat_template_kwargs": {"enable_thinking": ...}'),
    "thinking_token_budget": Refused((-1,), "max_reasoning_tokens"),
    "thinking_budget": Refused((-1,), "max_reasoning_tokens"),
    "reasoning_budget": Refused((-1,), "max_reasoning_tokens"),
    "reasoning_budget_tokens": Refused((-1,), "max_reasoning_tokens"),
    "reasoning_budget_message": _NO_TEXT,
    "include_reasoning": _ON,
    "separate_reasoning": Refused((True, False)),
    "stream_reasoning": Refused((True, False)),
    "reasoning_format": Refused(("none", "auto", "")),
    "verbosity": Refused(("medium",)),
    # The prompt, and the template that makes it.
    "chat_template": _NO_TEXT,
    "chat_template_str": _NO_TEXT,
    "template": _NO_TEXT,
    "instruction_template": _NO_TEXT,
    "instruction_template_str": _NO_TEXT,
    "character": _NO_TEXT,
    "system": Refused(("",), "a message of role system"),
    "instructions": Refused(("",), "a message of role system"),
    "prompt_token_ids": Refused(([],), "prompt in /v1/completions"),
    "prompt_embeds": _NO_LIST,
    "inputs": Refused(("", []), "prompt or messages"),
    "input": Refused(("", []), "prompt or messages"),
    "input_ids": Refused(([],), "prompt in /v1/completions"),
    "input_embeds": _NO_LIST,
    "truncation_side": Refused(("left",)),
    "truncation_length": Refused((0,), "truncate_prompt_tokens"),
    "truncate": Refused((False,), "truncate_prompt_tokens"),
    "add_bos_token": Refused((True,), "add_special_tokens"),
    "continue_": Refused((False,), "continue_final_message"),
    "impersonate": _OFF,
    "safe_prompt": _OFF,
    "raw": _OFF,
    # Other weights, other computations.
    "lora": _NO_LIST,
    "lora_path": _NONE,
    "lora_request": _NEVER,
    "adapter_id": _NO_TEXT,
    "preset": _NO_TEXT,
    "guidance_scale": _ONE,
    "cfg_scale": _ONE,
    "negative_prompt": _NO_TEXT,
    "session_params": _NO_OBJECT,
    "kv_transfer_params": _NO_OBJECT,
    "ec_transfer_params": _NO_OBJECT,
    "cache_salt": _NO_TEXT,
    "extra_key": _NO_TEXT,
    "watermark": _OFF,
    "watermarking": _OFF,
    # How tokens are drawn.
    "do_sample": Refused((True,), "temperature 0"),
    "typical_p": _ONE,
    "typ_p": _ONE,
    "tfs": _ONE,
    "tfs_z": _ONE,
    "top_a": _ZERO,
    "top_n_sigma": Refused((0, -1)),
    "epsilon_cutoff": _ZERO,
    "eta_cutoff": _ZERO,
    "smoothing_factor": _ZERO,
    "dynatemp_range": _ZERO,
    "dynamic_temperature": _OFF,
    "mirostat": _ZERO,
    "mirostat_mode": _ZERO,
    "xtc_probability": _ZERO,
    "dry_multiplier": _ZERO,
    "adaptive_target": Refused((-1,)),
    "penalty_alpha": _ZERO,
    "encoder_repetition_penalty": _ONE,
    "no_repeat_ngram_size": _ZERO,
    "repeat_last_n": Refused((-1,)),
    "repetition_penalty_range": Refused((0, -1)),
    "repetition_detection": _NO_OBJECT,
    "min_keep": _ZERO,
    "samplers": _NONE,
    "sampler_priority": _NONE,
    "sampler_order": _NO_LIST,
    "temperature_last": _OFF,
    "logits_processors": _NO_LIST,
    "custom_logit_processor": _NO_TEXT,
    "custom_params": _NO_OBJECT,
    "vllm_xargs": _NO_OBJECT,
    "bad_words": _NO_LIST,
    "banned_tokens": _NO_LIST,
    "banned_strings": _NO_LIST,
    "custom_token_bans": _NO_TEXT,
    "allowed_token_ids": _NEVER,
    "ban_eos_token": Refused((False,), "ignore_eos, min_tokens or logit_bias"),
    "use_beam_search": _OFF,
    "num_beams": _ONE,
    "length_penalty": _ONE,
    "early_stopping": _OFF,
    "diversity_penalty": _ZERO,
    "random_seed": Refused((), "seed"),
    "options": Refused(({},), "its fields, by their names here, beside the others"),
    # Where the answer ends.
    "stop_regex": _NONE,
    "stop_sequences": Refused(([],), "stop"),
    "min_new_tokens": Refused((0,), "min_tokens"),
    "max_length": Refused((), "max_tokens"),
    "max_output_tokens": Refused((), "max_tokens"),
    "num_predict": Refused((), "max_tokens"),
    "auto_max_new_tokens": Refused((False,), "max_tokens -1"),
    "max_tokens_second": _ZERO,
    "t_max_predict_ms": Refused((0, -1), "timeout"),
    # How many answers, and what is told of them.
    "n_cmpl": Refused((1,), "n"),
    "num_return_sequences": Refused((1,), "n"),
    "n_probs": Refused((0,), "logprobs"),
    "top_n_tokens": Refused((0,), "logprobs"),
    "post_sampling_probs": _OFF,
    "prompt_logprobs": Refused((False,), "echo and logprobs in /v1/completions"),
    "decoder_input_details": _OFF,
    "return_full_text": Refused((False,), "echo in /v1/completions"),
    "return_tokens": Refused((False,), "return_token_ids"),
    "return_tokens_as_token_ids": Refused((False,), "return_token_ids"),
    "return_token_offsets": _OFF,
    "return_prompt_text": _OFF,
    "return_assistant_tokens_mask": _OFF,
    "return_hidden_states": _OFF,
    "return_routed_experts": _OFF,
    "spaces_between_special_tokens": _ON,
    "response_fields": _NO_LIST,
}

REFUSED_IN_CHAT: Mapping[str, Refused] = {
    "prompt": Refused(("", []), "messages"),
    "echo": _OFF,
    "best_of": _ONE,
    "suffix": _NO_TEXT,
}

REFUSED_IN_COMPLETIONS: Mapping[str, Refused] = {
    "tools": Refused(([],), "chat completions"),
    "tool_choice": Refused(("none", "auto"), "chat completions"),
    "parallel_tool_calls": Refused((True, False)),
    "reasoning_effort": Refused(("none",), "chat completions"),
    "max_reasoning_tokens": Refused((), "chat completions"),
    "messages": Refused(([],), "prompt, or /v1/chat/completions"),
    "top_logprobs": Refused((0,), "logprobs"),
    "max_completion_tokens": Refused((), "max_tokens"),
}

# Fields of the older APIs, whose answers are choices.
_OF_CHOICES: Mapping[str, Refused] = {
    "n": _ONE,
    "best_of": _ONE,
    "echo": _OFF,
    "suffix": _NO_TEXT,
    "return_token_ids": _OFF,
    "add_generation_prompt": _ON,
}

REFUSED_IN_RESPONSES: Mapping[str, Refused] = {
    **_but(REFUSED, "input", "instructions", "max_output_tokens", "reasoning"),
    "previous_response_id": Refused(("",), "input with all items so far; this server keeps none"),
    "conversation": Refused(("",), "input with all items so far; this server keeps none"),
    "store": Refused((False,), "store false; this server keeps no answers"),
    "background": _OFF,
    "background_options": _NO_OBJECT,
    "prompt": Refused((), "input and instructions"),
    "context_management": _NO_LIST,
    "access_programs": _NEVER,
    "image": _NEVER,
    "messages": Refused(([],), "input"),
    "response_format": Refused(({"type": "text"},), "text.format"),
    "reasoning_effort": Refused(("none",), "reasoning.effort"),
    "max_tokens": Refused((), "max_output_tokens"),
    "max_completion_tokens": Refused((), "max_output_tokens"),
    "n_predict": Refused((), "max_output_tokens"),
    "max_new_tokens": Refused((), "max_output_tokens"),
    "logprobs": Refused((False,), "include"),
    **_OF_CHOICES,
    "continue_final_message": _OFF,
}

REFUSED_IN_ANTHROPIC: Mapping[str, Refused] = {
    **_but(REFUSED, "system", "stop_sequences", "thinking"),
    "container": _NEVER,
    "context_management": _NEVER,
    "inference_geo": _NEVER,
    "mcp_servers": _NO_LIST,
    "output_format": Refused((), "output_config.format"),
    "prompt": Refused(("", []), "messages"),
    "response_format": Refused(({"type": "text"},), "output_config.format"),
    "reasoning_effort": Refused(("none",), "thinking"),
    "max_reasoning_tokens": Refused((), "thinking.budget_tokens"),
    "max_completion_tokens": Refused((), "max_tokens"),
    "n_predict": Refused((), "max_tokens"),
    "max_new_tokens": Refused((), "max_tokens"),
    "parallel_tool_calls": Refused((True,), "tool_choice.disable_parallel_tool_use"),
    "stream_options": Refused(({},)),
    "logprobs": Refused((False,)),
    "top_logprobs": _ZERO,
    **_OF_CHOICES,
    "continue_final_message": Refused((), "a message of the assistant at the end"),
}

REFUSED_IN_TOKENIZE: Mapping[str, Refused] = {
    "tools": Refused(([],), "messages beside it"),
    "documents": _NO_LIST,
    "chat_template": _NO_TEXT,
    "mm_processor_kwargs": _NO_OBJECT,
    "media_io_kwargs": _NO_OBJECT,
    "add_special": Refused((), "add_special_tokens"),
    "parse_special": _ON,
    "with_pieces": Refused((False,), "return_token_strs"),
    "truncation_side": Refused(("left",)),
    "truncate_prompt_tokens": Refused((-1,)),
}

REFUSED_IN_DETOKENIZE: Mapping[str, Refused] = {
    "skip_special_tokens": _OFF,
    "spaces_between_special_tokens": _ON,
}

# Keys of one message: those that no template gets here, and marks that other servers read as continue_final_message.
REFUSED_IN_MESSAGES: Mapping[str, Refused] = {
    "function_call": Refused(({},), "tool_calls"),
    "audio": _NO_OBJECT,
    "images": _NO_LIST,
    "prefix": Refused((False,), "continue_final_message"),
    "partial": Refused((False,), "continue_final_message"),
}

_MIROSTAT = ("mirostat", "mirostat_mode")
_DYNAMIC = ("dynatemp_range", "dynamic_temperature")
TUNING: Mapping[str, Tuning] = {
    "mirostat_tau": Tuning(_MIROSTAT, (5,)),
    "mirostat_eta": Tuning(_MIROSTAT, (0.1,)),
    "xtc_threshold": Tuning(("xtc_probability",), (0.1,)),
    "dry_base": Tuning(("dry_multiplier",), (1.75,)),
    "dry_allowed_length": Tuning(("dry_multiplier",), (2,)),
    "dry_penalty_last_n": Tuning(("dry_multiplier",), (-1, 0)),
    "dry_sequence_breakers": Tuning(
        ("dry_multiplier",), ("", [], ["\n", ":", '"', "*"], '"\\n", ":", "\\"", "*"', '["\\n", ":", "\\"", "*"]')
    ),
    "dynatemp_exponent": Tuning(_DYNAMIC, (1,)),
    "dynatemp_low": Tuning(_DYNAMIC, (1,)),
    "dynatemp_high": Tuning(_DYNAMIC, (1,)),
    "smoothing_curve": Tuning(("smoothing_factor",), (1,)),
    "adaptive_decay": Tuning(("adaptive_target",), (0.9,)),
}

# Who sends the request, where it is stored or billed, what is kept between requests, and how fast it should be.
HARMLESS = frozenset({
    "user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "prompt_cache_options", "prediction", "stream_obfuscation",
    "priority", "request_id", "rid", "custom_labels", "stream_interval",
    "cache_prompt", "id_slot", "n_cache_reuse", "n_keep", "n_discard", "backend_sampling", "sse_ping_interval",
    "max_tool_calls", "cache_control", "speed", "diagnostics", "user_profile_id", "workspace_id",
    "keep_alive", "ttl", "draft_model", "prompt_lookup_num_tokens", "static_cache",
})  # fmt: skip


def asks_for_nothing(value: Any, nothing: tuple[Any, ...]) -> bool:
    """Whether a value asks for nothing. Here True differs from 1, but 1.0 equals 1."""
    return value is None or any((type(value) is bool) == (type(none) is bool) and value == none for none in nothing)


def require_supported(sent: Mapping[str, Any], refused: Mapping[str, Refused]) -> None:
    """Refuse, by name, fields that are not supported.

    Args:
        sent: keys of a request that are not fields of it.
    """
    for name, value in sent.items():
        if (field := refused.get(name)) and not asks_for_nothing(value, field.nothing):
            instead = f"use {field.instead}" if field.instead else "leave it out"
            refuse(name, f"is not supported; {instead}", "unsupported_parameter")


def require_untuned(sent: Mapping[str, Any]) -> None:
    """Refuse settings of a mechanism unless the request turns it off, because elsewhere it may be on by default.

    Args:
        sent: keys of a request that are not fields of it, without the keys of its messages.
    """
    # A request that turns the mechanism on is refused by ``require_supported``.
    for name, value in sent.items():
        if (tuning := TUNING.get(name)) and not asks_for_nothing(value, tuning.usual) and not _is_off(tuning, sent):
            refuse(name, f"is not supported; leave it out, or turn {tuning.of[0]} off", "unsupported_parameter")


def _is_off(tuning: Tuning, sent: Mapping[str, Any]) -> bool:
    """Whether the request turns the mechanism off."""
    return any(sent.get(name) is not None for name in tuning.of)


def unknown(sent: Mapping[str, Any], refused: Mapping[str, Refused]) -> list[str]:
    """Keys that are unknown both here and elsewhere, such as a misspelt one."""
    return sorted(set(sent) - set(refused) - set(TUNING) - HARMLESS)


def documented(schema: dict[str, Any], refused: Mapping[str, Refused]) -> None:
    """Write into a request's JSON schema which values of these fields are accepted.

    They are listed apart from the properties, which are the fields that have an effect.
    """
    schema["patternProperties"] = {
        f"^{name}$": {
            "enum": [None, *field.nothing],
            "description": "not supported; accepted where it asks for nothing",
        }
        for name, field in refused.items()
    }
