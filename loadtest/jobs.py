"""Jobs: the bodies of all requests, in which sparsities take turns. No I/O."""

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
    """Endless jobs. In each round all sparsities get the same prompt, and another sparsity goes first.

    Args:
        template: the fields of every body.
        overrides: fields that replace others; None removes a field.
        sparsities: None sends no such field.
        tags: one begins each prompt; None sends prompts as they are.
        chat: send texts as messages.
    """
    for number in count():
        again, which = divmod(number, len(prompts))
        # When the same prompt comes again, another sparsity goes first, too.
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
