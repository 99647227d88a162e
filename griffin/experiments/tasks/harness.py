"""GRIFFIN as a model of lm-eval (EleutherAI's LM Evaluation Harness), registered as ``griffin``.

    import lm_eval, griffin.experiments.tasks.harness
    lm_eval.simple_evaluate(model="griffin", model_args="pretrained=MODEL,sparsity=0.5", tasks=["piqa"])

It derives from lm-eval's own ``hf`` model, so texts become tokens in exactly the same way.
"""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance  # type: ignore[import-untyped]
from lm_eval.api.registry import register_model  # type: ignore[import-untyped]
from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]
from lm_eval.models.utils import (  # type: ignore[import-untyped]
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)

from griffin.errors import GriffinError
from griffin.experiments.common.study import Study, open_model
from griffin.experiments.common.variants import Variant, name_of
from griffin.experiments.tasks import simulation
from griffin.model.checkpoint.source import EMBEDDED_MODEL
from griffin.model.forward import share
from griffin.request import Pruning, StatisticName, StrategyName

logger = logging.getLogger("griffin")

Encoded = tuple[tuple[str, str], list[int], list[int]]


@register_model("griffin")
class GriffinLM(HFLM):  # type: ignore[misc]
    """One variant of a model. Variants that will get the same questions can be answered together with it."""

    def __init__(
        self,
        pretrained: str = EMBEDDED_MODEL,
        sparsity: float = 0.0,
        statistic: StatisticName = "flocking",
        selection: StrategyName = "top_k",
        dtype: str = "auto",
        device: str | None = None,
        max_length: int | None = None,
        out: str = "results",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """
        Args:
            pretrained: as for ``griffin.load``: a hub id, a directory, a .gguf file, or the embedded default.
            max_length: longer texts lose their beginning. Default: the model's context.
            out: the directory of the ledger, with which a stopped run goes on.
            batch_size, max_batch_size: ignored; lm-eval always passes them. One sequence runs at a time.

        Raises:
            GriffinError: the model cannot be loaded.
            ValueError: an invalid sparsity, statistic or selection.
        """
        Pruning(float(sparsity), selection, statistic, method="griffin")
        study = open_model(pretrained, dtype, device or "auto", None, Path(out))
        self._begin(study, Variant("GRIFFIN", float(sparsity), statistic, selection), (), max_length)

    @classmethod
    def of(
        cls, study: Study, variant: Variant, together: Sequence[Variant] = (), max_length: int | None = None
    ) -> "GriffinLM":
        """A variant of a model that is already loaded.

        Args:
            together: variants that will get the same questions. Each text is then read once for all of them.
        """
        made: GriffinLM = cls.__new__(cls)
        made._begin(study, variant, together, max_length)
        return made

    def _begin(self, study: Study, variant: Variant, together: Sequence[Variant], max_length: int | None) -> None:
        # lm-eval changes the tokenizer: it sets a padding token, for example.
        tokenizer = copy.deepcopy(study.tokenizer)
        longest = min(study.context_length, max_length or study.context_length)
        model = share(study.checkpoint.model)
        # lm-eval ties weights again. They are already tied, and a model with a file's own codes has no such weights.
        model.tie_weights = _tied
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=longest)
        if self.eot_token_id is None:
            raise GriffinError(f"the tokenizer of '{study.name}' has no EOS token, which lm-eval needs")
        self._study, self._variant = study, variant
        # The progress bar shows it.
        self.doing = "lm-eval"
        # Names of prompts that were too long and lost their beginning.
        self.cut: set[str] = set()
        self._together = together if variant in together else (variant, *together)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """The same as lm-eval's, without its progress bar: ``simulation`` has one, for the slow part."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(
        self, requests: list[Encoded], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        pairs = [self._within_context(context, answer) for _, context, answer in requests]
        simulation.score(self._study, self._together, pairs, self.doing)
        return [simulation.known_score(self._study, self._variant, *pair) for pair in pairs]

    def _within_context(self, context: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
        excess = max(0, len(context) + len(answer) - (self.max_length + 1))
        if excess >= len(context):
            raise ValueError(f"an answer of {len(answer)} tokens leaves no room for a prompt in {self.max_length}")
        if excess:
            self.cut.add(name_of(context))
        return context[excess:], answer

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Refused: simulated generation (5.1) scores the answer to a prompt, and a rolling window has no prompt."""
        raise ValueError("lm-eval's griffin model scores answers to prompts, not whole texts; see perplexity")

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        asked = [self._generation(*request.args) for request in requests]
        for settings in dict.fromkeys((max_tokens, until) for _, max_tokens, until in asked):
            prompts = [prompt for prompt, *others in asked if tuple(others) == settings]
            simulation.generate(self._study, self._together, prompts, *settings, what=self.doing)
        return [self._text(*one) for one in asked]

    def _generation(self, context: str, options: dict[str, Any]) -> tuple[list[int], int, tuple[str, ...]]:
        """The tokens of the prompt, how many tokens may follow, and the texts that end them."""
        settings = normalize_gen_kwargs(options, self.max_gen_toks)
        if settings["do_sample"]:
            raise ValueError("lm-eval's griffin model generates greedily: do_sample is not supported")
        max_tokens = int(settings["max_gen_toks"])
        if max_tokens >= self.max_length:
            raise ValueError(f"max_gen_toks: {max_tokens} leaves no room in a context of {self.max_length} tokens")
        until = handle_stop_sequences(settings.get("until"), eos=self.tok_decode(self.eot_token_id))
        ids_1T, _ = self.tok_batch_encode([context])
        room = self.max_length - max_tokens
        ids = ids_1T[0].tolist()
        if len(ids) > room:
            self.cut.add(name_of(ids))
        return ids[-room:], max_tokens, tuple(stop for stop in until if stop)

    def _text(self, prompt: list[int], max_tokens: int, until: tuple[str, ...]) -> str:
        text = simulation.known_text(self._study, self._variant, prompt, max_tokens, until)
        return str(postprocess_generated_text(text, stop=list(until), think_end_token=None))


def _tied() -> None:
    """Replaces the library's ``tie_weights`` and does nothing."""
