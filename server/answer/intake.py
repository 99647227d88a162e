"""From a valid body to a queued job: the model, the sparsity, the ids of each prompt."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from urllib.parse import quote

from fastapi import Request

from griffin.errors import ContextLengthExceeded, InvalidRequest
from server.answer.choices import Choices, choose
from server.answer.counts import Counts
from server.answer.generation import Generation
from server.answer.observation import Observation
from server.answer.report import Report
from server.answer.texts import Delivery
from server.errors import InvalidField
from server.protocol.chat import TemplateRequest
from server.protocol.fields import SparsityChoice
from server.protocol.request import GenerationRequest
from server.service import ServedModel, Service, parse_sparsity
from server.text.tokenizer import TemplateFailed, encode, render_chat
from server.work.job import Ask, Job

logger = logging.getLogger("griffin")

# In characters; no vocabulary in use has a longer one. Texts beyond cost seconds and gigabytes to tokenize.
LONGEST_TOKEN = 128
SPARSITY_HEADER = "x-griffin-sparsity"
IGNORED_HEADER = "x-griffin-ignored"
HEADER_KEYS = 16


class Body(Protocol):
    """A body that may have keys of no meaning."""

    def ignored(self) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Intake:
    """One request while it is taken in."""

    service: Service
    model: ServedModel
    body: GenerationRequest
    requested_sparsity: SparsityChoice | None
    choices: Choices
    arrived: float
    request: Request

    async def queue(self, prompts: Sequence[str | list[int]], add_special_tokens: bool, opens: bool) -> Generation:
        """Tokenize and submit. The place in the queue is taken first: tokenizing costs more than a refusal.

        Raises:
            QueueFull, ServerDraining, EngineFailed: see ``Queue.reserve``.
            InvalidRequest, InvalidField: a prompt that no engine could take.
        """
        workers, settings = self.model.workers, self.service.settings
        limit_s = min(self.body.timeout or settings.request_timeout, settings.request_timeout)
        with workers.queue.reserve():
            try:
                ids = await tokenize(self.model, prompts, add_special_tokens, shortened=self._shortened)
                asks = tuple(self._ask(prompt_ids) for prompt_ids in ids)
                workers.check(asks)
            except InvalidRequest as refusal:
                refusal.param = self.body.field_name(refusal.param)
                raise
            self._require_few_scores(asks)
            job = Job(asks, self.arrived, self.arrived + limit_s, self.request.state.request_id)
            size = sum(len(ask.prompt_ids) for ask in asks) if self.body.echoes else 0
            # A text of which nothing was cut off; its tokens may have others before them that the tokenizer has added.
            whole = [
                prompt if isinstance(prompt, str) and len(own) == len(ask.prompt_ids) else None
                for prompt, own, ask in zip(prompts, ids, asks, strict=True)
            ]
            delivery = await self.model.worked_out(size, self._delivery, whole, asks, opens)
            counts = Counts(asks)
            report = Report(job, counts, workers.engine.accounting, self.requested_sparsity)
            observation = self._observation(job, counts, report)
            generation = Generation(job, self.model, counts, report, observation, delivery)
            workers.queue.submit(job)
        observation.accepted()
        self.request.state.accepted = True
        return generation

    def _observation(self, job: Job, counts: Counts, report: Report) -> Observation:
        accounting, metrics = self.model.workers.engine.accounting, self.service.metrics
        return Observation(job, counts, report, accounting, metrics, self.model.name, self.request.state.log)

    @property
    def _shortened(self) -> bool:
        return bool(self.body.truncate_prompt_tokens)

    def _ask(self, prompt_ids: list[int]) -> Ask:
        body, context, defaults = self.body, self.model.workers.engine.context_length, self.model.sampling_defaults
        clamp = self.service.settings.overlong_max_tokens == "clamp"
        if kept := body.truncate_prompt_tokens:
            prompt_ids = prompt_ids[-(body.longest_prompt(context, defaults, clamp=clamp) if kept == -1 else kept) :]
        limit = body.limit_within(context - len(prompt_ids), defaults, clamp=clamp)
        choices, pruning = self.choices, self.choices.pruning
        if pruning.auto is not None:
            # A request without a limit is not expected to fill the context.
            tokens = limit if (body.token_limit() or 0) > 0 else None
            pruning = replace(pruning, auto=replace(pruning.auto, tokens=tokens))
        return Ask(
            prompt_ids, body.samplings(limit, defaults), pruning, body.scoring(), choices.verification, choices.compare
        )

    def _require_few_scores(self, asks: Sequence[Ask]) -> None:
        try:
            self.body.require_few_scores(sum(len(ask.prompt_ids) for ask in asks))
        except ValueError as refusal:
            raise InvalidField(f"logprobs: {refusal}", "logprobs") from None

    def _delivery(self, whole: Sequence[str | None], asks: Sequence[Ask], opens: bool) -> Delivery:
        body, skip = self.body, self.body.skip_special_tokens is not False
        return Delivery(
            model_name=body.model or self.model.name,
            choices=body.choices,
            sequences=body.sequences,
            opens=opens,
            prompts=self._echoes(whole, asks) if body.echoes else None,
            logprobs=body.wanted_logprobs() is not None,
            token_ids=bool(body.return_token_ids),
            stops=body.stop,
            include_stop=bool(body.include_stop_str_in_output),
            skip_special_tokens=skip,
            min_tokens=body.min_tokens or 0,
        )

    def _echoes(self, whole: Sequence[str | None], asks: Sequence[Ask]) -> list[str]:
        """A whole text is echoed as it came. Ids, and what is left of a truncated text, are spelled, special ones too:
        skip_special_tokens is about what is generated."""
        decode = self.model.tokenizer.decode
        return [
            decode(ask.prompt_ids, skip_special_tokens=False) if text is None else text
            for text, ask in zip(whole, asks, strict=True)
        ]


def begin(body: GenerationRequest, request: Request, prompts: int) -> Intake:
    """
    Args:
        prompts: how many the body has.

    Raises:
        ModelNotFound, ModelLoading, ServerDraining: see ``Service.resolve``.
        InvalidField: model name, header and body do not name the same sparsity; or see ``choose``.
        ExpertsNotFound: see ``choose``.
    """
    service: Service = request.app.state.service
    model, alias_sparsity = service.resolve(body.model)
    header = request.headers.get(SPARSITY_HEADER)
    named = {
        "sparsity": body.sparsity,
        SPARSITY_HEADER: None if header is None else parse_sparsity(header, SPARSITY_HEADER),
        "model": alias_sparsity,
    }
    given = {where: sparsity for where, sparsity in named.items() if sparsity is not None}
    if len(set(given.values())) > 1:
        listed = ", ".join(
            f"{where}: {sparsity if sparsity == 'auto' else f'{sparsity:g}'}" for where, sparsity in given.items()
        )
        raise InvalidField(f"sparsity: the request names different ones ({listed})", "sparsity")
    requested = next(iter(given.values()), None)
    choices = choose(body, requested, prompts, service.settings, model)
    return Intake(service, model, body, requested, choices, time.monotonic(), request)


async def render(model: ServedModel, body: TemplateRequest) -> str:
    """
    Raises:
        InvalidField: the model has no chat template, or it refuses these messages.
    """
    if not model.tokenizer.chat_template:
        raise InvalidField(
            f"messages: {model.name} has no chat template; send a prompt to /v1/completions", "messages",
            "no_chat_template",
        )  # fmt: skip
    conversation = body.conversation()
    size = sum(len(message["content"]) for message in conversation)
    try:
        return await model.worked_out(size, render_chat, model.tokenizer, conversation, body.template_options())
    except TemplateFailed as refusal:
        raise InvalidField(f"messages: the model's chat template refuses them: {refusal}", "messages") from None


async def tokenize(
    model: ServedModel, prompts: Sequence[str | list[int]], add_special_tokens: bool, *, shortened: bool = False
) -> list[list[int]]:
    """Texts become ids; ids stay.

    Args:
        shortened: only the last ids of each will be kept.

    Raises:
        ContextLengthExceeded: a text is so long that it cannot fit, whatever its tokens are.
    """
    context = model.workers.engine.context_length
    longest, size = context * LONGEST_TOKEN, 0
    cut: list[str | list[int]] = [prompt[-longest:] if shortened else prompt for prompt in prompts]
    for prompt in cut:
        if isinstance(prompt, str) and len(prompt) > longest:
            raise ContextLengthExceeded(
                f"this model's context is {context} tokens, and {len(prompt)} characters are surely more; "
                "shorten the prompt",
                "prompt",
            )
        size += len(prompt) if isinstance(prompt, str) else 0

    def encoded() -> list[list[int]]:
        return [encode(model.tokenizer, p, add_special_tokens) if isinstance(p, str) else p for p in cut]

    return await model.worked_out(size, encoded)


def ignored_header(body: Body) -> dict[str, str]:
    """Unknown keys are common and harmless, but a misspelt ``sparsity`` must not go unseen."""
    names = [quote(name[:64].encode("utf-8", "replace"), safe="/[]") for name in body.ignored()]
    if not names:
        return {}
    listed = ",".join(names[:HEADER_KEYS] + ["..."] * (len(names) > HEADER_KEYS))
    logger.warning("ignored unknown fields: %s", listed)
    return {IGNORED_HEADER: listed}
