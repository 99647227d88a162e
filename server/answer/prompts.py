"""Messages become a text, by the model's chat template, and texts become ids."""

from collections.abc import Sequence

from griffin.errors import ContextLengthExceeded
from server.errors import InvalidField
from server.protocol.conversation import Templated
from server.served import ServedModel
from server.text.tokenizer import TemplateFailed, encode, render_chat

# In characters: no vocabulary in use has a longer token. A text of more than so many characters for each token of the
# context cannot fit, and would cost seconds and gigabytes to tokenize.
LONGEST_TOKEN = 128
# Characters of a tool, about.
TOOL = 1_000


async def render(model: ServedModel, body: Templated) -> str:
    """Messages as one prompt, by the model's chat template.

    Raises:
        InvalidField: the model has no chat template, or it refuses these messages.
    """
    said_in = body.said_in
    if not model.tokenizer.chat_template:
        raise InvalidField(
            f"{said_in}: {model.name} has no chat template; send a prompt to /v1/completions", said_in,
            "no_chat_template",
        )  # fmt: skip
    offered = body.offered()
    tools = offered.for_template() if offered else []
    conversation = model.tools.prepared(body.conversation(), tools)
    options = body.template_options()
    if tools and model.tools.takes_tools:
        options["tools"] = tools
    size = sum(len(message["content"]) for message in conversation) + TOOL * len(tools)
    try:
        return await model.worked_out(size, render_chat, model.tokenizer, conversation, options)
    except TemplateFailed as refusal:
        raise InvalidField(f"{said_in}: the model's chat template refuses it: {refusal}", said_in) from None


async def tokenize(
    model: ServedModel, prompts: Sequence[str | list[int]], add_special_tokens: bool, *, shortened: bool = False
) -> list[list[int]]:
    """Texts become ids; ids stay.

    Args:
        shortened: only the last ids of each will be kept.

    Raises:
        ContextLengthExceeded: a text is so long that it cannot fit, whatever its tokens are.
    """
    context = model.engine.context_length
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
