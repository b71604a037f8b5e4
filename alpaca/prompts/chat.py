"""The tokenizer's own chat template."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from datetime import date
from functools import cached_property
from typing import Any

from alpaca.errors import BadMessages, BadTemplate
from alpaca.prompts.control import answer_tags, any_of, control_tokens
from alpaca.prompts.example import Example
from alpaca.prompts.marks import USUAL, Marks
from alpaca.prompts.template import Segment
from alpaca.prompts.tool_form import PROBE, TOOLS, Pieces, ToolForm, changed, find_tool_form
from alpaca.prompts.turn_end import Message, TurnEnd, find_turn_end
from alpaca.words import shown

DATE = date(2024, 7, 26)
TODAY = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")  # how a chat template asks for today's date
MOST_SAID = 300  # characters of a template's own error
OPENED = re.compile(r"<(\w+)>\s*\Z")  # a tag, such as <think>, at the end of a prompt


class ChatTemplate:
    """The tokenizer's own chat template.

    What the template writes after an answer, up to and including its turn end, belongs to the response; what follows
    begins the next prompt. The date is fixed, so that a prompt is the same on every day.
    """

    name = "chat"

    def __init__(self, tokenizer: Any) -> None:
        """Raises BadTemplate where the tokenizer has no chat template."""
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise BadTemplate("this base's tokenizer has no chat template; choose another template, such as 'alpaca'")
        try:
            self.jinja: str = tokenizer.get_chat_template()
            with_tools: str = tokenizer.get_chat_template(tools=[])
        except ValueError as error:
            raise BadTemplate(f"the base's chat template can't be used: {error}") from error
        self._ids = control_tokens(tokenizer)
        self._control = any_of(self._ids)
        self._control_in_answers = any_of(self._ids.keys() - answer_tags(tokenizer))
        self.dateless, self._dateless_with_tools = map(dateless, (self.jinja, with_tools))

    @property
    def turn_end(self) -> int | None:
        return self._ids.get(self._end.token)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return self._end.stop_strings

    def segments(self, example: Example) -> list[Segment]:
        """The conversation rendered once, and split where its answers begin and end.

        An answer that the template writes in another way than where a model would write it stays part of the prompt.
        Raises BadMessages where the template refuses the conversation or leaves out what its tools say.
        """
        marks = Marks.unused(example)
        asked = example.awaiting()
        prompt = self._rendered(asked, marks)
        if example.uses_tools:
            self._refuse_what_is_left_out(example, marks)
        segments: list[Segment] = []
        done = 0
        for start, end in self._answers(asked, prompt, marks):
            segments += (marks.segment(prompt[done:start], False), marks.segment(prompt[start:end], True))
            done = end
        segments.append(marks.segment(prompt[done:], False))
        if example.turns[-1].output is not None:
            rest = self._continued(prompt, example, marks)
            ended = self._end_in(rest, marks)
            answer = marks.segment(f"{rest}{self._end.token}" if ended is None else rest[:ended], True)
            if not answer.text.removesuffix(self._end.token).strip() and not example.turns[-1].is_blank:
                raise BadMessages(f"{_where(example.row)}the base's chat template leaves out the answer")
            segments.append(answer)
        return segments

    def conversations(self, example: Example) -> list[list[Segment]]:
        """One where every answer is written as it is where a conversation ends with it, else one for each answer."""
        turns = example.turns
        whole = self.segments(example)
        begun = [self.segments(replace(example, turns=turns[:count])) for count in range(1, len(turns))]
        return [whole] if all(whole[: len(part)] == part for part in begun) else [*begun, whole]

    def card(self) -> dict[str, Any]:
        return {"kind": "chat", "name": self.name, "chat_template": self.jinja, "sha256": template_hash(self.jinja)}

    @cached_property
    def _end(self) -> TurnEnd:
        def render(messages: list[Message], ask: bool) -> str:
            return self._render(self.dateless, messages, None, 0, ask=ask)

        return find_turn_end(render, self._control, self.tokenizer.bos_token or "")

    @cached_property
    def _tool_forms(self) -> dict[bool, ToolForm]:
        """The form without schemas, and with: tokenizers may have a template of its own for these."""

        def render(example: Example, form: ToolForm) -> str:
            return self._rendered(example, USUAL, form)

        return {
            listed: find_tool_form(render, replace(PROBE, tools=TOOLS if listed else "")) for listed in (False, True)
        }

    # --- rendering ---
    def _rendered(self, example: Example, marks: Marks, form: ToolForm | None = None) -> str:
        """The conversation as the template writes it, with marks around every control token's spelling."""

        def mark(text: str) -> str:
            return marks.around(self._control, text)

        messages = example.messages()
        for number, message in enumerate(messages):
            spellings = self._control_in_answers if message["role"] == "assistant" else self._control
            message["content"] = marks.around(spellings, message["content"])
            message |= {name: mark(message[name]) for name in ("name", "tool_call_id") if name in message}
            if "tool_calls" in message:
                messages[number] = (form or self._tool_forms[bool(example.tools)]).message(message, mark)
        tools = changed(json.loads(example.tools), mark) if example.tools else None
        jinja = self._dateless_with_tools if example.tools else self.dateless
        return self._render(jinja, messages, tools, example.row, ask=example.turns[-1].output is None)

    def _render(self, jinja: str, messages: list[Message], tools: list[Message] | None, row: int, *, ask: bool) -> str:
        from jinja2 import TemplateError

        where = _where(row)
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=jinja,
                tokenize=False,
                add_generation_prompt=ask,
                date_string=f"{DATE:%d %b %Y}",
            )
        except Exception as error:  # a chat template is a program of its author's and can raise anything
            said = shown(str(error), MOST_SAID)
            if type(error) is TemplateError:  # the template's own raise_exception()
                raise BadMessages(f"{where}the base's chat template refuses this conversation: {said}") from error
            raise BadTemplate(f"{where}the base's chat template fails: {type(error).__name__}: {said}") from error
        return str(text)

    def _refuse_what_is_left_out(self, example: Example, marks: Marks) -> None:
        pieces = Pieces(marks)
        if left_out := pieces.left_out(self._rendered(pieces.pinned(example), marks)):
            where = _where(example.row)
            raise BadMessages(
                f"{where}the base's chat template leaves out {left_out}; take a base whose template writes tools"
            )

    # --- earlier answers ---
    def _answers(self, asked: Example, prompt: str, marks: Marks) -> list[tuple[int, int]]:
        """Where earlier answers stand in `prompt`, those that are written as the model would write them.

        The conversation is rendered a second time with a pin at the end of every text, so that the work grows with
        the length of the conversation and not with its square.
        """
        if len(asked.turns) == 1:
            return []
        stretches = self._rendered(marks.ends_pinned(asked), marks).split(marks.pin)
        if len(stretches) != 2 * len(asked.turns) or "".join(stretches) != prompt:
            return []
        behind_result = self._tool_forms[bool(asked.tools)].before if asked.uses_tools else ""
        found: list[tuple[int, int]] = []
        at = 0
        for number, turn in enumerate(asked.turns[:-1]):
            before, answer, after = stretches[2 * number : 2 * number + 3]
            at += len(before)
            question = turn.results[-1].content if turn.results else turn.question
            start = _skip(answer, question, behind_result if turn.results else self._end.before)
            end = self._end_in(after, marks)
            if not self._end.token and not turn.calls:
                end = _skip(after, turn.output or "", self._end.after)
            if start is not None and end is not None:
                found.append((at + start, at + len(answer) + end))
            at += len(answer)
        return found

    def _end_in(self, text: str, marks: Marks) -> int | None:
        """Where the first turn end of the template's own ends in `text`."""
        token = self._end.token
        at = marks.find_own(token, text) if token else -1
        return None if at < 0 else at + len(token)

    # --- the last answer ---
    def _continued(self, prompt: str, example: Example, marks: Marks) -> str:
        """What the model is to write after `prompt`, given the conversation with its answer. Raises BadTemplate.

        Where the template changes what stands before the last question once that is answered (Mistral's moves the
        system text to the one that awaits its answer), what follows the question decides.
        """
        output = marks.around(self._control_in_answers, example.turns[-1].output or "")
        whole = self._rendered(example, marks)
        written = _written(prompt, whole, output)
        if written is None:
            *earlier, last = example.turns
            pinned = replace(example, turns=(*earlier, marks.question_pinned(last)))
            rendered = (self._rendered(said, marks) for said in (pinned.awaiting(), pinned))
            waiting, ended = (text.rpartition(marks.pin)[2] for text in rendered)
            written = _written(waiting, ended, output)
        if written is None:
            raise _rewritten(prompt, whole, example)
        return written


def template_hash(text: str) -> str:
    """SHA-256 of a chat template, in hex: what an adapter's card knows it by."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def dateless(jinja: str) -> str:
    return TODAY.sub(lambda found: repr(DATE.strftime(found[2])), jinja)


def _where(row: int) -> str:
    return f"row {row}: " if row else ""


def _skip(text: str, before: str, wanted: str) -> int | None:
    """How far `wanted` reaches at the beginning of `text`, perhaps after the blanks that `before` ends with."""
    blanks = before[len(before.rstrip()) :]
    return next((len(start) for start in (blanks + wanted, wanted) if text.startswith(start)), None)


def _written(prompt: str, whole: str, output: str) -> str | None:
    """What `whole` adds to `prompt`, which may have opened the thoughts already; None where it begins otherwise."""
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    opened = OPENED.search(prompt)
    if opened is None or not whole.startswith(prompt[: opened.start()]):
        return None
    return _with_thoughts(whole[opened.start() :], output, opened[1])


def _with_thoughts(answer: str, output: str, tag: str) -> str:
    """`answer` as it follows a prompt that ends with the opened `tag`: its thoughts first, or none.

    The template may have left out the thoughts; then they are in the `output` that it was given.
    """
    opened, closed = f"<{tag}>", f"</{tag}>"
    if closed in answer:
        thoughts, _, said = answer.partition(closed)
    else:
        thoughts, said = output.rpartition(closed)[0], answer
    thoughts, said = thoughts.replace(opened, "", 1).strip("\n"), said.lstrip("\n")
    return f"{thoughts}\n{closed}\n\n{said}"


def _rewritten(prompt: str, whole: str, example: Example) -> BadTemplate:
    at = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
    near = slice(max(0, at - 10), at + 30)
    return BadTemplate(
        f"{_where(example.row)}the base's chat template rewrites the prompt once the answer is there, so what is "
        f"trained would not be what is served: {prompt[near]!r} becomes {whole[near]!r}. "
        "Choose another template (alpaca)"
    )
