"""Findings of ``latency``: all that it measured on one model, as JSON and as text for a terminal."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from griffin import Engine
from griffin.experiments.common.llama import described
from griffin.experiments.common.memory import device_name
from griffin.experiments.common.study import when
from griffin.experiments.speed.bandwidth import Bandwidth
from griffin.experiments.speed.beside import beside_table
from griffin.experiments.speed.lengths import Lengths
from griffin.experiments.speed.rows import Row
from griffin.experiments.speed.tables import LEGEND, cost_table, paper_table, speed_table

# Fields of a configuration that the JSON keeps.
DIMENSIONS = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True, slots=True)
class Findings:
    """
    name: the model, or the shape whose weights are random.
    formats: how the weights are held, see ``Checkpoint.formats``.
    generate_reads: which weights transformers' generate reads; None if it did not run.
    beside: llama.cpp's side, see ``beside.as_json``; None if it did not run.
    settings: the rows of each pair of lengths.
    """

    name: str
    random_weights: bool
    model: PreTrainedModel
    formats: str
    engine: Engine
    bandwidth: Bandwidth
    generate_reads: str | None
    beside: dict[str, Any] | None
    settings: Sequence[tuple[Lengths, list[Row]]]

    def as_json(self) -> dict[str, Any]:
        """Everything a reader needs to compare this run with another."""
        return {
            "experiment": "latency",
            "model": self.name,
            "random_weights": self.random_weights,
            "shape": self._shape(),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "formats": self.formats,
            "device": str(self.engine.device),
            "device_name": device_name(self.engine.device),
            "threads": torch.get_num_threads(),
            "step": self.engine.step,
            "prefill_chunk": self.engine.prefixes.chunk,
            **when(),
            "generate_reads": self.generate_reads,
            "llama_cpp": self.beside,
            "bandwidth": {"copy": self.bandwidth.copy, "read": self.bandwidth.read},
            "settings": [
                {
                    "prompt_tokens": prompt_tokens,
                    "tokens": tokens,
                    "rounds": len(found[0].runs),
                    "rows": [
                        {**row.as_json(), "prompt_tokens_per_second": prompt_tokens / row.prefill_seconds.median}
                        for row in found
                    ],
                }
                for (prompt_tokens, tokens), found in self.settings
            ],
        }

    def text(self) -> str:
        """A heading, tables for each pair of lengths, a legend, and the form of the paper's Table 3."""
        parts = [self._heading()]
        for (prompt_tokens, tokens), found in self.settings:
            rounds = len(found[0].runs)
            title = f"{prompt_tokens} + {tokens} tokens, {rounds} round{'s' * (rounds > 1)}"
            parts += [f"{title}\n{speed_table(found)}", cost_table(found)]
            if self.beside:
                parts.append(beside_table(found, prompt_tokens))
        parts += [LEGEND, paper_table([(f"{p}+{g}", found) for (p, g), found in self.settings])]
        return "\n\n".join(parts)

    def _shape(self) -> dict[str, Any]:
        config = self.model.config.to_dict()
        return {
            **{name: config[name] for name in DIMENSIONS if name in config},
            "num_key_value_heads": config.get("num_key_value_heads") or config.get("num_attention_heads"),
            "neurons_per_layer": self.engine.accounting.width,
            "parameters": self.engine.accounting.total,
        }

    def _heading(self) -> str:
        device = self.engine.device
        random = " (random weights)" if self.random_weights else ""
        threads = f", torch threads: {torch.get_num_threads()}" if device.type == "cpu" else ""
        reads = f"; generate reads {self.generate_reads}" if self.generate_reads else ""
        lines = [
            f"{self.name}{random}, {self.formats}, {device_name(device)}{threads}, {self.engine.step} step",
            f"memory bandwidth: copy {self.bandwidth.copy / 1e9:.1f} GB/s, "
            f"read {self.bandwidth.read / 1e9:.1f} GB/s{reads}",
        ]
        return "\n".join([*lines, *self._both_programs()])

    def _both_programs(self) -> list[str]:
        """The versions and settings of the engine and of llama.cpp, if that ran."""
        if self.beside is None:
            return []
        dtype = str(self.model.dtype).removeprefix("torch.")
        versions = ", ".join(f"{name} {version}" for name, version in when()["versions"].items())
        ours = f"here: {versions}; KV cache {dtype}, prompt in chunks of {self.engine.prefixes.chunk}"
        both = (ours, described(self.beside))
        return [line for words in both for line in textwrap.wrap(words, 120, subsequent_indent="  ")]
