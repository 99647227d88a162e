"""Messages become a text by the model's chat template; texts become token ids."""

from collections.abc import Sequence

from griffin.errors import ContextLengthExceeded
from server.errors import InvalidField
from server.protocol.conversation import Templated
from server.served import ServedModel
from server.text.infill import Gap, Infill
from server.text.tokenizer import TemplateFailed, encode, render_chat

# A text, token ids, or two texts with a gap between them.
Prompt = str | list[int] | Gap

# Characters. No vocabulary in use has a longer token. A text with more characters than this for each token of the
# context cannot fit; tokenizing it would cost seconds and gigabytes.
LONGEST_TOKEN = 128
# Approximate characters of a tool's description.
TOOL = 1_000


async def render(model: ServedModel, body: Templated) -> str:
    """Messages as one prompt, by the model's chat template.

    Raises:
        InvalidField: the model has no chat template, cannot think as requested, or its template refuses the messages.
    """
    said_in = body.said_in
    if body.thinks:
        require_thoughts(model, body.thinking_field)
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


def require_thoughts(model: ServedModel, param: str) -> None:
    """
    Raises:
        InvalidField: ``param`` asks the model to think, but it does not.
    """
    if model.thoughts is None:
        raise InvalidField(f"{param}: {model.name} does not think; leave it out", param, "unsupported_parameter")


def with_gaps(model: ServedModel, prompts: Sequence[str | list[int]], suffix: str | None) -> Sequence[Prompt]:
    """The prompts of a request. With a ``suffix``, each becomes a gap between the prompt and the suffix.

    Raises:
        InvalidField: the model cannot fill gaps.
    """
    if not suffix:
        return prompts
    require_infill(model)
    return [Gap(prompt, suffix) for prompt in prompts if isinstance(prompt, str)]


def require_infill(model: ServedModel) -> Infill:
    """
    Raises:
        InvalidField: the model cannot fill gaps.
    """
    if model.infill is None:
        raise InvalidField(
            f"suffix: {model.name} does not fill in the middle: its tokenizer has no marks for that; leave suffix out, "
            "or serve a model such as Qwen2.5-Coder",
            "suffix",
            "unsupported_parameter",
        )
    return model.infill


async def tokenize(
    model: ServedModel, prompts: Sequence[Prompt], add_special_tokens: bool, *, shortened: bool = False
) -> list[list[int]]:
    """Texts, and texts with a gap, become ids; ids stay as they are.

    Args:
        shortened: only the last ids of each prompt will be kept.

    Raises:
        ContextLengthExceeded: a text is too long to fit, however it is tokenized.
    """
    context = model.engine.context_length
    longest, size = context * LONGEST_TOKEN, 0
    cut: list[Prompt] = [
        prompt[-longest:] if shortened and not isinstance(prompt, Gap) else prompt for prompt in prompts
    ]
    for prompt in cut:
        characters = _characters(prompt)
        if characters > longest:
            raise ContextLengthExceeded(
                f"this model's context is {context} tokens, and {characters} characters are surely more; "
                "shorten the prompt",
                "prompt",
            )
        size += characters

    def encoded() -> list[list[int]]:
        return [_encoded(model, prompt, add_special_tokens) for prompt in cut]

    return await model.worked_out(size, encoded)


def _characters(prompt: Prompt) -> int:
    if isinstance(prompt, Gap):
        return len(prompt.before) + len(prompt.after)
    return len(prompt) if isinstance(prompt, str) else 0


def _encoded(model: ServedModel, prompt: Prompt, add_special_tokens: bool) -> list[int]:
    if isinstance(prompt, Gap):
        return require_infill(model).encode(prompt, add_special_tokens)
    return encode(model.tokenizer, prompt, add_special_tokens) if isinstance(prompt, str) else prompt
