"""Jobs: the bodies of all requests, the sparsities in turn. No I/O."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from loadtest.prompts import Prompt, Tags, tagged


@dataclass(frozen=True, slots=True)
class Job:
    body: dict[str, Any]
    sparsity: float | None


def jobs(
    template: Mapping[str, Any],
    overrides: Mapping[str, Any],
    prompts: Sequence[Prompt],
    sparsities: Sequence[float | None],
    tags: Tags | None,
    *,
    chat: bool,
) -> Iterator[Job]:
    """Without end. In each round all sparsities answer the same prompt, and another one goes first.

    Args:
        template: fields of every body. overrides: fields that win over all others; None takes one out.
        sparsities: None sends no such field.
        tags: for the beginning of each prompt; None sends prompts as they are.
        chat: texts become messages.
    """
    for number in count():
        again, which = divmod(number, len(prompts))
        # Another one for the same prompt, too, when it comes again.
        prompt, first = prompts[which], (which + again) % len(sparsities)
        for sparsity in (*sparsities[first:], *sparsities[:first]):
            mine = tagged(prompt, tags.next()) if tags else prompt
            body = {**template, **_prompt_fields(mine, chat)}
            if sparsity is not None:
                body["sparsity"] = sparsity
            body |= overrides
            yield Job({name: value for name, value in body.items() if value is not None}, sparsity)


def _prompt_fields(prompt: Prompt, chat: bool) -> dict[str, Any]:
    if not chat:
        return {"prompt": prompt}
    return {"messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt}
