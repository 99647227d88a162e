"""Passes over a given text, with the logits after each token: fp32, decode steps, the prompt pass, llama.cpp.

Shapes: T tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from griffin.engine.assembly import assemble
from griffin.engine.pass_limit import PassLimit
from griffin.engine.prefixes import PrefixStore
from griffin.engine.prompt import never
from griffin.experiments.common.llama import LlamaCpp
from griffin.method.preparation import Preparation
from griffin.request import Sampling

PassName = Literal["steps", "prompt"]
# The tokens in a chunk of the prompt pass, as in the server.
CHUNK = 256


class Pass(Protocol):
    """Reads one text at a time."""

    name: str

    def begin(self, ids: Sequence[int]) -> None:
        """Start a text with these tokens."""

    def read(self, ids: Sequence[int]) -> Tensor:
        """Read more of it: the logits after each of these tokens, ``(T, V)``."""


class Reference:
    """The library's own forward pass, without any code of the engine."""

    name = "fp32"

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._cache = model.eval().requires_grad_(False), None

    def begin(self, ids: Sequence[int]) -> None:
        self._cache = None
        self.read(ids)

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> Tensor:
        ids_1T = torch.tensor([ids], device=self._model.device)
        output: Any = self._model(input_ids=ids_1T, past_key_values=self._cache, use_cache=True)
        self._cache = output.past_key_values
        logits_TV: Tensor = output.logits[0]
        return logits_TV


class Served:
    """The engine's parts on one sequence: its decode step for each token, or its prompt pass.

    step: which step decodes, see ``decode.steps``.
    """

    def __init__(self, model: PreTrainedModel, by: PassName, context_length: int) -> None:
        self.name, self._by = f"here, {SPELLED[by]}", by
        model.eval().requires_grad_(False)
        self._assembly = assemble(
            model, PrefixStore(0, CHUNK), PassLimit(), Preparation(), context_length=context_length, step="auto"
        )
        # As in an engine: a step that gives wrong results is replaced.
        self._assembly.verify(range(4))
        self._ids: list[int] = []
        self._logits_V = torch.empty(0)

    @property
    def step(self) -> str:
        return self._assembly.state.decoder.name

    @torch.inference_mode()
    def begin(self, ids: Sequence[int]) -> None:
        self._ids = []
        self._assembly.begin()
        self._logits_V = self._read_as_prompt(ids)[-1]
        decoder = self._assembly.state.decoder
        decoder.keep(None)
        decoder.begin(self._logits_V, Sampling(temperature=0, ignore_eos=True), ids, ())()

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> Tensor:
        if self._by == "prompt":
            return self._read_as_prompt(ids)
        return torch.stack([self._step(id) for id in ids])

    def _read_as_prompt(self, ids: Sequence[int]) -> Tensor:
        start = len(self._ids)
        self._ids += ids
        chunks = self._assembly.prefill.read_dense(self._ids, start, len(self._ids), start, never)
        return torch.cat(list(chunks))

    def _step(self, id: int) -> Tensor:
        """Run this token instead of the one that was drawn."""
        decoder = self._assembly.state.decoder
        decoder.take(id, self._logits_V)()
        decoder.advance()()
        # Copied, because the next step writes over them.
        self._logits_V = decoder.logits().clone()
        return self._logits_V


class Peer:
    """llama.cpp on the file, one step for each token or in batches.

    facts: see ``LlamaCpp``, with the file's name.
    """

    def __init__(self, llama_cpp: LlamaCpp, by: PassName) -> None:
        self.name, self._llama_cpp, self._by = f"llama.cpp, {SPELLED[by]}", llama_cpp, by
        self.facts = {"file": llama_cpp.file.name, **llama_cpp.facts}

    def begin(self, ids: Sequence[int]) -> None:
        self._llama_cpp.clear()
        self._llama_cpp.logits(ids, one_by_one=False)

    def read(self, ids: Sequence[int]) -> Tensor:
        return self._llama_cpp.logits(ids, one_by_one=self._by == "steps")


SPELLED: dict[PassName, str] = {"steps": "by steps", "prompt": "as a prompt"}
