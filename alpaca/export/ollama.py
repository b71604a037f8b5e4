"""The Modelfile that Ollama makes a model of: the template in Go's template language, stop strings, parameters.

Ollama does not run the Jinja in a GGUF file. So the template is written once more, as what stands around each message;
it is filled in for the proof's questions and compared before it is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alpaca.export.leaving import Leaving

FILE = "Modelfile"
CONTEXT = 8192  # tokens that Ollama is asked to make room for, where the base has as many
_SYSTEM, _ASKED, _SAID, _AGAIN = "alpacasystem", "alpacaquestion", "alpacaanswer", "alpacafurther"
Messages = Sequence[dict[str, str]]
Render = Callable[[Messages], str]


@dataclass(frozen=True)
class Affixes:
    """What a template writes around messages. A question's end belongs to what comes after it: to the answer's
    beginning, or to `waiting`. `default`: the system text where none is given."""

    begin: str
    system: tuple[str, str]
    answer: tuple[str, str]
    waiting: str
    default: str

    def go(self) -> str:
        """The template in Go's language (text/template), over .Messages."""
        begin = f'{{{{- if eq (index .Messages 0).Role "user" }}}}{_said(self.begin)}{{{{- end }}}}'
        return (
            f"{begin if self.begin else ''}"
            "{{- range .Messages }}"
            f'{{{{- if eq .Role "system" }}}}{_said(self.system[0])}{{{{- .Content }}}}{_said(self.system[1])}'
            '{{- else if eq .Role "user" }}{{- .Content }}'
            f'{{{{- else if eq .Role "assistant" }}}}{_said(self.answer[0])}{{{{- .Content }}}}{_said(self.answer[1])}'
            "{{- end }}{{- end }}"
            f"{_said(self.waiting)}"
        )

    def filled(self, messages: Messages) -> str:
        """What `go` makes of messages, the default system text in front where they have none."""
        if self.default and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default}, *messages]
        around = {"system": self.system, "user": ("", ""), "assistant": self.answer}
        texts = [around[said["role"]][0] + said["content"] + around[said["role"]][1] for said in messages]
        return (self.begin if messages[0]["role"] == "user" else "") + "".join(texts) + self.waiting


def find_affixes(render: Render) -> Affixes | None:
    """Take a template apart by rendering messages of known words; None for one that does more than put text around
    messages."""
    asked, said, again = (
        {"role": role, "content": text} for role, text in (("user", _ASKED), ("assistant", _SAID), ("user", _AGAIN))
    )
    try:
        plain = render([asked])
        whole = render([{"role": "system", "content": _SYSTEM}, asked, said, again])
    except Exception:  # a chat template is a program of its author's and can raise anything
        return None
    pieces = _split(whole, (_SYSTEM, _ASKED, _SAID, _AGAIN))
    if pieces is None or plain.count(_ASKED) != 1:
        return None
    before_system, after_system, before_answer, after_answer, waiting = pieces
    begin = plain.partition(_ASKED)[0]
    default = ""
    if not after_system.endswith(begin):  # then the template puts a system text of its own there
        if not (begin.startswith(before_system) and begin.endswith(after_system)):
            return None
        default = begin[len(before_system) : len(begin) - len(after_system)]
        begin = ""
    return Affixes(begin, (before_system, after_system), (before_answer, after_answer), waiting, default)


def _split(text: str, words: Sequence[str]) -> list[str] | None:
    pieces = []
    for word in words:
        before, found, text = text.partition(word)
        if not found:
            return None
        pieces.append(before)
    return [*pieces, text]


def write_modelfile(leaving: Leaving, folder: Path, model: str, asked: Sequence[Messages]) -> str:
    """Write the Modelfile for the GGUF file `model`. Returns in words what became of the template."""
    affixes = find_affixes(lambda messages: _rendered(leaving, messages))
    told = ""
    if affixes is not None:
        trimmed = [
            messages for messages in asked if all(said["content"] == said["content"].strip() for said in messages)
        ]
        if any(affixes.filled(messages) != _rendered(leaving, messages) for messages in trimmed):
            affixes = None
        elif any(affixes.filled(messages) != _rendered(leaving, messages) for messages in asked):
            told = "; blanks around a message stay in Ollama, where the template takes them away"
    lines = [f"FROM ./{model}"]
    if affixes is None:
        told = "the template does more than Ollama's language was written for here: Ollama will guess, so look at it"
        lines.append(f"# {told}")
    else:
        lines.append(f'TEMPLATE """{affixes.go()}"""')
        lines += [f'SYSTEM """{affixes.default}"""'] if affixes.default else []
        told = f"the template is written in Ollama's language and gives the same text{told}"
    lines += [f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}" for text in stop_strings(leaving)]
    lines.append(f"PARAMETER num_ctx {min(CONTEXT, leaving.weights.config['max_position_embeddings'])}")
    (folder / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return told


def stop_strings(leaving: Leaving) -> list[str]:
    """The texts of the tokens that end an answer, and the template's own stop strings."""
    ends = [leaving.tokenizer.convert_ids_to_tokens(token) for token in leaving.ends]
    return list(dict.fromkeys([*ends, *leaving.template.stop_strings]))


def _rendered(leaving: Leaving, messages: Messages) -> str:
    """The prompt's text, without the BOS that Ollama puts there by itself."""
    text: str = leaving.tokenizer.apply_chat_template(
        list(messages), chat_template=leaving.jinja, tokenize=False, add_generation_prompt=True
    )
    return text.removeprefix(leaving.tokenizer.bos_token) if leaving.begins_with_bos else text


def _said(text: str) -> str:
    """An action that writes `text`; JSON's escapes are Go's."""
    return f"{{{{- {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
