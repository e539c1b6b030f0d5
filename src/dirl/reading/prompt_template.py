"""What is put round a question: rewards look for answers in a form that the model must be told of."""

from collections.abc import Sequence
from typing import Any

PLACE = "{question}"


def check_template(template: str | None) -> None:
    """Raise ValueError if a template has no place for the question."""
    if template is not None and PLACE not in template:
        raise ValueError(f"prompt_template={template!r} has no {PLACE}: put it where the question belongs, or set null")


def fill(template: str | None, question: str | Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """The question in its template; of a list of messages the last one of the user. All else is taken as it stands."""
    if isinstance(question, str):
        return question if template is None else template.replace(PLACE, question)
    messages = [dict(message) for message in question]
    if template is not None:
        last = max(index for index, message in enumerate(messages) if message["role"] == "user")
        messages[last]["content"] = template.replace(PLACE, messages[last]["content"])
    return messages
