"""The template that a model was trained with, as the chat template (Jinja) that other tools fill in."""

from __future__ import annotations

from typing import Any

from alpaca.errors import ExportRefused
from alpaca.prompts.alpaca import AlpacaTemplate, further_turn
from alpaca.prompts.chat import ChatTemplate
from alpaca.prompts.template import Template


def chat_template(template: Template, *, begins_with_bos: bool) -> str:
    """The Jinja text that makes of messages what `template` makes of the same conversation.

    The tokenizer's own chat template goes along as it is, with the fixed date of the training in it. A template of
    alpaca-lora's kind becomes one that writes a question with its input as one instruction. Raises ExportRefused for a
    template that no messages can be put into.
    """
    if isinstance(template, ChatTemplate):
        return template.dateless
    if isinstance(template, AlpacaTemplate):
        return _alpaca(template, begins_with_bos)
    raise ExportRefused(f"the template {template.name} can't be written as a chat template: choose alpaca or chat")


def _alpaca(template: AlpacaTemplate, begins_with_bos: bool) -> str:
    first = template.prompt_no_input
    return "".join(
        [
            "{{- bos_token }}" if begins_with_bos else "",
            "{%- for message in messages %}",
            "{%- if message['role'] == 'system' %}",
            "{%- if message['content'] | trim %}{{- message['content'] + '\\n\\n' }}{%- endif %}",
            "{%- elif message['role'] == 'user' %}",
            "{%- if loop.first or (loop.index0 == 1 and messages[0]['role'] == 'system') %}",
            _filled(first),
            "{%- else %}",
            _filled(further_turn(template)),
            "{%- endif %}",
            "{%- elif message['role'] == 'assistant' %}",
            "{{- message['content'] + eos_token }}",
            "{%- endif %}",
            "{%- endfor %}",
        ]
    )


def _filled(prompt: str) -> str:
    """A Jinja expression that writes `prompt` with the message at its {instruction}."""
    parts = [_literal(part) for part in prompt.split("{instruction}")]
    return "{{- " + " + message['content'] + ".join(parts) + " }}"


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


def rendered(tokenizer: Any, jinja: str, messages: list[dict[str, Any]]) -> list[int]:
    """The ids that other tools make of `messages`: the template filled in, then tokenised as one text."""
    text: str = tokenizer.apply_chat_template(messages, chat_template=jinja, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def begins_with_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts BOS in front of every text."""
    return tokenizer.bos_token_id is not None and tokenizer.encode("a")[:1] == [tokenizer.bos_token_id]
