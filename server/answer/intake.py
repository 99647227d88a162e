"""From a valid body to a queued job: the model, the sparsity, the token ids of each prompt."""

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from fastapi import Request

from griffin.constraint import Grammar
from griffin.errors import InvalidRequest
from server.answer.choices import Choices, choose
from server.answer.constraining import budget_of, grammar_of, strict_calls_of
from server.answer.counts import Counts
from server.answer.disconnect import disconnected
from server.answer.generation import Generation
from server.answer.observation import Observation
from server.answer.prompts import Prompt, require_infill, tokenize
from server.answer.report import Report
from server.answer.texts import Delivery
from server.errors import InvalidField
from server.protocol.fields import SparsityChoice
from server.protocol.request import GenerationRequest
from server.protocol.tool import Offered
from server.served import ServedModel, parse_sparsity
from server.service import Service
from server.text.reading import Reading
from server.text.reasoning import Thoughts, is_begun
from server.text.response_template import TemplateReading
from server.text.tool_calls import CallReading
from server.work.job import Ask, Job

SPARSITY_HEADER = "x-griffin-sparsity"


@dataclass(frozen=True, slots=True)
class Intake:
    """One request before it is queued: its body, and what was derived from it.

    arrived: when it arrived, in seconds of ``time.monotonic``.
    """

    service: Service
    model: ServedModel
    body: GenerationRequest
    requested_sparsity: SparsityChoice | None
    choices: Choices
    arrived: float
    request: Request

    async def queue(
        self, prompts: Sequence[Prompt], add_special_tokens: bool, opens: bool, offered: Offered | None = None
    ) -> Generation:
        """Tokenize the prompts and submit them. A place in the queue is reserved first, because tokenizing costs more
        than a refusal.

        Args:
            opens: see ``Delivery``.
            offered: the tools that answers may call, if any.

        Raises:
            QueueFull, ServerDraining, EngineFailed: see ``Queue.reserve``.
            InvalidRequest, InvalidField: the engine cannot take a prompt, or no answer can have the requested form.
        """
        shortened = bool(self.body.truncate_prompt_tokens)
        with self.model.workers.queue.reserve():
            with self._errors_by_field():
                ids = await tokenize(self.model, prompts, add_special_tokens, shortened=shortened)
                held = grammar = await grammar_of(self.body.form(), offered, self.model)
                # An answer with a form has no thought.
                thoughts = None if grammar or not opens else self._thoughts(prompts[0])
                grammar = grammar or budget_of(self.body, thoughts, self.model)
                calls = await strict_calls_of(self.body.form(), offered, grammar, thoughts, self.model)
                grammar = calls or grammar
                asks = tuple(self._ask(prompt_ids, grammar) for prompt_ids in ids)
                self.model.workers.check(asks)
            self._require_few_scores(asks)
            template = None if held or not opens else self._template_reading(prompts[0], offered)
            reading = template or self._reading(thoughts, offered)
            generation = self._generation(asks, await self._delivery(prompts, ids, asks, opens, reading))
            generation.submit()
        self.request.state.accepted = True
        return generation

    @contextmanager
    def _errors_by_field(self) -> Iterator[None]:
        """Replace the engine's name of a field by the client's."""
        try:
            yield
        except InvalidRequest as refusal:
            refusal.param = self.body.field_name(refusal.param)
            raise

    def _ask(self, prompt_ids: list[int], grammar: Grammar | None) -> Ask:
        body, context, defaults = self.body, self.model.engine.context_length, self.model.sampling_defaults
        clamp = self.service.settings.overlong_max_tokens == "clamp"
        if kept := body.truncate_prompt_tokens:
            prompt_ids = prompt_ids[-(body.longest_prompt(context, defaults, clamp=clamp) if kept == -1 else kept) :]
        limit = body.limit_within(context - len(prompt_ids), defaults, clamp=clamp)
        choices, pruning = self.choices, self.choices.pruning
        if pruning.auto is not None:
            # A request without max_tokens is not expected to fill the context.
            tokens = limit if (body.token_limit() or 0) > 0 else None
            pruning = replace(pruning, auto=replace(pruning.auto, tokens=tokens))
        samplings = body.samplings(limit, defaults, grammar)
        if body.fills and not body.ignore_eos:
            ends = require_infill(self.model).ends
            samplings = tuple(replace(each, stop_token_ids=each.stop_token_ids | ends) for each in samplings)
        return Ask(prompt_ids, samplings, pruning, body.scoring(), choices.verification, choices.compare)

    def _require_few_scores(self, asks: Sequence[Ask]) -> None:
        try:
            self.body.require_few_scores(sum(len(ask.prompt_ids) for ask in asks))
        except ValueError as refusal:
            raise InvalidField(f"logprobs: {refusal}", "logprobs") from None

    def _generation(self, asks: tuple[Ask, ...], delivery: Delivery) -> Generation:
        model, settings, state = self.model, self.service.settings, self.request.state
        limit_s = self.body.longest_s(settings.request_timeout)
        job = Job(asks, self.arrived, self.arrived + limit_s, state.request_id)
        accounting, counts = model.engine.accounting, Counts(asks)
        report = Report(job, counts, accounting, self.requested_sparsity)
        form, metrics = self.body.form(), self.service.metrics
        kind = form.kind if form else None
        observation = Observation(job, counts, report, accounting, metrics, model.name, state.log, kind)
        return Generation(job, model, counts, report, observation, delivery)

    async def _delivery(
        self,
        prompts: Sequence[Prompt],
        ids: Sequence[list[int]],
        asks: Sequence[Ask],
        opens: bool,
        reading: Reading | TemplateReading | None,
    ) -> Delivery:
        body = self.body
        return Delivery(
            model_name=body.model or self.model.name,
            choices=body.choices,
            sequences=body.sequences,
            opens=opens,
            prompts=await self._echoes(prompts, ids, asks) if body.echoes else None,
            logprobs=body.wanted_logprobs() is not None,
            token_ids=body.tells_ids,
            stops=body.stop,
            include_stop=bool(body.include_stop_str_in_output),
            skip_special_tokens=body.skip_special_tokens is not False,
            min_tokens=body.min_tokens or 0,
            reading=reading,
        )

    def _thoughts(self, prompt: Prompt) -> Thoughts | None:
        """How thoughts are recognised in a conversation's answers, if the model thinks."""
        marks = self.model.thoughts
        return Thoughts(marks, is_begun(marks, prompt)) if marks is not None and isinstance(prompt, str) else None

    def _template_reading(self, prompt: Prompt, offered: Offered | None) -> TemplateReading | None:
        """How a conversation's answers are read by the tokenizer's template; None: not by that."""
        template = self.model.template_with_tools if offered else self.model.template
        if template is None or not isinstance(prompt, str):
            return None
        if offered is None:
            return TemplateReading(template, prompt)
        return TemplateReading(template, prompt, offered.for_template(), offered.names, offered.single)

    def _reading(self, thoughts: Thoughts | None, offered: Offered | None) -> Reading | None:
        """How a conversation's answers are split into thought, calls and content; None: they are not split."""
        calls = None
        if offered:
            calls = CallReading(self.model.tools.form, offered.names, offered.single, offered.mode != "auto")
        return Reading(thoughts, calls) if thoughts or calls else None

    async def _echoes(self, prompts: Sequence[Prompt], ids: Sequence[list[int]], asks: Sequence[Ask]) -> list[str]:
        """The prompts as texts. A text that was not truncated is echoed unchanged. Everything else is decoded with
        special tokens, because ``skip_special_tokens`` applies to generated tokens only."""
        # The tokenizer may have put tokens before a text's own tokens; these are not decoded.
        texts = [
            prompt if isinstance(prompt, str) and len(own) == len(ask.prompt_ids) else None
            for prompt, own, ask in zip(prompts, ids, asks, strict=True)
        ]
        decode = self.model.tokenizer.decode

        def spelled() -> list[str]:
            return [
                decode(ask.prompt_ids, skip_special_tokens=False) if text is None else text
                for text, ask in zip(texts, asks, strict=True)
            ]

        return await self.model.worked_out(sum(len(ask.prompt_ids) for ask in asks), spelled)


@asynccontextmanager
async def begin(body: GenerationRequest, request: Request, prompts: int) -> AsyncIterator[Intake]:
    """Find the model and the choices of a body. The model stays loaded until the block ends: queue the job inside it.

    Args:
        prompts: number of prompts in the body.

    Raises:
        ModelNotFound, ModelLoading, ModelUnavailable, ServerDraining, RequestTimeout: see ``Service.resolve``.
        InvalidField: the model name, the header and the body name different sparsities; or see ``choose``.
        ExpertsNotFound: see ``choose``.
    """
    service: Service = request.app.state.service
    arrived = time.monotonic()
    deadline = arrived + body.longest_s(service.settings.request_timeout)
    async with service.resolve(body.model, deadline, partial(disconnected, request)) as (model, alias_sparsity):
        requested = _requested_sparsity(body, request.headers.get(SPARSITY_HEADER), alias_sparsity)
        choices = choose(body, requested, prompts, service.settings, model)
        yield Intake(service, model, body, requested, choices, arrived, request)


def _requested_sparsity(
    body: GenerationRequest, header: str | None, alias: SparsityChoice | None
) -> SparsityChoice | None:
    """The sparsity that a request names in its model name, header or body; None if it names none.

    Raises:
        InvalidField: it names two different ones.
    """
    named = {
        "sparsity": body.sparsity,
        SPARSITY_HEADER: None if header is None else parse_sparsity(header, SPARSITY_HEADER),
        "model": alias,
    }
    given = {where: sparsity for where, sparsity in named.items() if sparsity is not None}
    if len(set(given.values())) > 1:
        listed = ", ".join(
            f"{where}: {sparsity if sparsity == 'auto' else f'{sparsity:g}'}" for where, sparsity in given.items()
        )
        raise InvalidField(f"sparsity: the request names different ones ({listed})", "sparsity")
    return next(iter(given.values()), None)
