"""Conversations: a prompt as a list of messages, which a chat template turns into a text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moetool.tracing.prompts.prompts import Prompt

# The usual name of the column that holds them.
MESSAGES = "messages"
# A message of one of these roles ends a conversation that needs no answer.
_ANSWERED = ("assistant", "model")

Messages = tuple[Mapping[str, object], ...]


class NotMessagesError(Exception):
    """A value is not a conversation. The message is the end of a sentence."""


def is_conversation(value: object) -> bool:
    """Return whether a value is a sequence of objects, which messages are.

    pandas reads a list in a Parquet file as an array of numpy, which takes a tenth of a second to
    import: it is recognised by what it can do.
    """
    return (
        (isinstance(value, Sequence) or hasattr(value, "__array__"))
        and not isinstance(value, str | bytes)
        and isinstance(value, Sized)
        and isinstance(value, Iterable)
        and len(value) > 0
        and all(isinstance(each, Mapping) for each in value)
    )


def parse_messages(value: Sequence[Mapping[str, object]]) -> Messages:
    """Return the messages of a conversation, without the fields that are null.

    Fields other than the role and the content are kept for the chat template, which may know them.

    Raises:
        NotMessagesError: A message lacks its role or its content, or all of them are blank.
    """
    messages = tuple(
        {name: field for name, field in message.items() if field is not None} for message in value
    )
    for number, message in enumerate(messages, start=1):
        for name in ("role", "content"):
            if not isinstance(message.get(name), str):
                raise NotMessagesError(f"has no '{name}' in message {number}")
    if not any(str(message["content"]).strip() for message in messages):
        raise NotMessagesError("has no text in any message")
    try:
        json.dumps(messages)
    except (TypeError, ValueError, RecursionError):
        raise NotMessagesError("holds values that JSON does not have") from None
    return messages


def describe_messages(messages: Messages) -> str:
    """Return a conversation as a text: a paragraph for each message, after its role."""
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def as_conversation(prompt: Prompt) -> dict[str, Any]:
    """Return the messages of a prompt, and whether the beginning of an answer follows them.

    A plain text is a user's only message.
    """
    messages = prompt.messages or ({"role": "user", "content": prompt.text},)
    return {
        "messages": list(messages),
        "add_generation_prompt": messages[-1]["role"] not in _ANSWERED,
    }
