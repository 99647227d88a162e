"""A request's form becomes the grammar that its answers are held to."""

from griffin.constraint import Grammar
from server.protocol.structured import Form
from server.text.grammars import Grammars


async def grammar_of(form: Form | None, grammars: Grammars) -> Grammar | None:
    """
    Raises:
        InvalidRequest: the form cannot be compiled, or takes too much; names the form's field.
    """
    if form is None:
        return None
    match form.kind:
        case "json_object" | "json_schema":
            return await grammars.of_schema(form.value, form.param)
        case "regex":
            return await grammars.of_regex(form.value, form.param)
        case "choice":
            return await grammars.of_choice(form.value, form.param)
        case "grammar":
            return await grammars.of_grammar(form.value, form.param)
