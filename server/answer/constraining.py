"""A request's form and tools become the grammar that its answers are held to."""

from collections.abc import Mapping, Sequence
from typing import Any

from griffin.constraint import Grammar
from griffin.errors import InvalidRequest
from server.answer.prompts import require_thoughts
from server.errors import InvalidField
from server.protocol.request import GenerationRequest
from server.protocol.structured import Form
from server.protocol.tool import Offered
from server.served import ServedModel
from server.text.closing import closed
from server.text.grammars import Grammars, NoGrammars
from server.text.reasoning import Thoughts
from server.text.strict_calls import AfterThought, OpenedCalls
from server.text.thought_budget import NoBudget, ThoughtBudget
from server.text.tool_grammar import calls_grammar, mark_ids, opened_grammar, opening_mark

# Arguments of a tool that is not strict.
ANY_OBJECT = {"type": "object", "additionalProperties": True}
# More tokens than any thought has.
UNLIMITED = 2**62


async def grammar_of(form: Form | None, offered: Offered | None, model: ServedModel) -> Grammar | None:
    """
    Raises:
        InvalidRequest: the form cannot be compiled, or costs too much; the error names the form's or tool's field.
        InvalidField: the form cannot be combined with tools.
    """
    if offered and (offered.mode != "auto" or form):
        return await _calls(form, offered, model)
    return await _form(form, model.grammars) if form else None


async def strict_calls_of(
    form: Form | None, offered: Offered | None, budget: Grammar | None, thoughts: Thoughts | None, model: ServedModel
) -> Grammar | None:
    """What holds calls of strict tools to their schemas where the model may call or not.

    None without such tools, where a call has no mark that opens it and is a token, where the tokenizer's own template
    reads other calls, where the marks of a thought are no tokens, and where the tokenizer allows no grammar.

    Args:
        budget: of the thought, if it has one.
        thoughts: how answers begin with a thought, if they can.

    Raises:
        InvalidRequest: a schema cannot be compiled, or takes too much; names the tool's field.
    """
    if form or not offered or offered.mode != "auto" or not any(tool.function.strict for tool in offered.tools):
        return None
    style, ids = model.tools.form, mark_ids(model.tokenizer, model.tools.form)
    template = model.template_with_tools
    if (mark := opening_mark(style, ids)) is None or (template and not template.reads(style)):
        return None
    schemas = [
        (tool.function.name, tool.function.schema_of_arguments() if tool.function.strict else ANY_OBJECT)
        for tool in offered.tools
    ]
    grammar = opened_grammar(style, schemas, ids, mark, single=offered.single)
    try:
        if budget is None and thoughts is not None:
            budget = _budget(UNLIMITED, thoughts, model)
        calls = OpenedCalls(ids[mark], await _compiled(grammar, schemas, offered, model))
    except (NoBudget, NoGrammars):
        return None
    return calls if budget is None else AfterThought(budget, calls)


def budget_of(body: GenerationRequest, thoughts: Thoughts | None, model: ServedModel) -> Grammar | None:
    """The grammar that ends a thought at the request's token budget; None if the request sets no budget.

    Args:
        thoughts: how answers begin with a thought, if they can.

    Raises:
        InvalidField: the model does not think, its marks are not single tokens, or another field excludes a budget.
    """
    if (budget := body.thought_budget()) is None:
        return None
    tokens, field = budget
    require_thoughts(model, field)
    for name in ("min_tokens", "ignore_eos"):
        if getattr(body, name, None):
            raise InvalidField(f"{field}: cannot be combined with {name}; leave one of them out", field)
    if thoughts is None:
        return None
    try:
        return _budget(tokens, thoughts, model)
    except NoBudget as refusal:
        raise InvalidField(f"{field}: not with this model: {refusal}", field, "unsupported_parameter") from None


def _budget(tokens: int, thoughts: Thoughts, model: ServedModel) -> ThoughtBudget:
    """
    Raises:
        NoBudget: the marks of thoughts are not single tokens.
    """
    size = model.engine.vocabulary_size
    return ThoughtBudget(model.tokenizer, thoughts.marks, tokens, size, begun=thoughts.begun)


async def _form(form: Form, grammars: Grammars) -> Grammar:
    match form.kind:
        case "json_object" | "json_schema":
            return await grammars.of_schema(form.value and closed(form.value), form.param)
        case "regex":
            return await grammars.of_regex(form.value, form.param)
        case "choice":
            return await grammars.of_choice(form.value, form.param)
        case "grammar":
            return await grammars.of_grammar(form.value, form.param)


async def _calls(form: Form | None, offered: Offered, model: ServedModel) -> Grammar:
    """The grammar of calls; if a call is optional, JSON of the form is allowed instead."""
    instead = None
    if form and offered.mode == "auto":
        if form.kind not in ("json_object", "json_schema"):
            raise InvalidField(f"{form.param}: cannot be combined with tools; leave one of them out", form.param)
        await _form(form, model.grammars)
        instead = closed(form.value) if form.kind == "json_schema" else {"type": "object"}
    schemas = [(tool.function.name, tool.function.schema_of_arguments()) for tool in offered.tools]
    style, ids = model.tools.form, mark_ids(model.tokenizer, model.tools.form)
    return await _compiled(
        calls_grammar(style, schemas, ids, single=offered.single, instead=instead), schemas, offered, model
    )


async def _compiled(
    grammar: str, schemas: Sequence[tuple[str, Mapping[str, Any]]], offered: Offered, model: ServedModel
) -> Grammar:
    try:
        return await model.grammars.of_lark(grammar, "tools", [schema for _, schema in schemas])
    except InvalidRequest:
        # Compile each tool alone to find the one at fault.
        for place, (_, schema) in zip(offered.places, schemas, strict=True):
            await model.grammars.of_schema(schema, f"tools[{place}].{offered.parameters}")
        raise
