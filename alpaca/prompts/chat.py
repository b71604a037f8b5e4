"""The tokenizer's own chat template."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from datetime import date
from functools import cached_property
from typing import Any

from alpaca.errors import BadMessages, BadTemplate
from alpaca.prompts.control import answer_tags, any_of, control_tokens
from alpaca.prompts.example import Example, Turn
from alpaca.prompts.marks import Marks
from alpaca.prompts.template import Segment
from alpaca.prompts.turn_end import Message, TurnEnd, find_turn_end

DATE = date(2024, 7, 26)
TODAY = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")  # how a chat template asks for today's date
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
        except ValueError as error:
            raise BadTemplate(f"the base's chat template can't be used: {error}") from error
        self._ids = control_tokens(tokenizer)
        self._control = any_of(self._ids)
        self._control_in_answers = any_of(self._ids.keys() - answer_tags(tokenizer))
        self._dateless = TODAY.sub(lambda found: repr(DATE.strftime(found[2])), self.jinja)

    @property
    def turn_end(self) -> int | None:
        return self._ids.get(self._end.token)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return self._end.stop_strings

    def segments(self, example: Example) -> list[Segment]:
        """The conversation rendered once, and split where its answers begin and end.

        An answer that the template writes in another way than where a model would write it stays part of the prompt.
        """
        marks = Marks.unused(example)
        messages = self._messages(example, marks)
        output = example.turns[-1].output
        asked = messages if output is None else messages[:-1]
        prompt = self._render(asked, example.row, ask=True)
        segments: list[Segment] = []
        done = 0
        for start, end in self._answers(example, asked, prompt, marks):
            segments += (marks.segment(prompt[done:start], False), marks.segment(prompt[start:end], True))
            done = end
        segments.append(marks.segment(prompt[done:], False))
        if output is not None:
            rest = self._continued(prompt, messages, example, marks)
            ended = self._end_in(rest, marks)
            segments.append(marks.segment(f"{rest}{self._end.token}" if ended is None else rest[:ended], True))
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
            return self._render(messages, 0, ask=ask)

        return find_turn_end(render, self._control, self.tokenizer.bos_token or "")

    def _messages(self, example: Example, marks: Marks) -> list[Message]:
        """The example in chat form, with marks around every control token's spelling."""
        messages = [{"role": "system", "content": example.system}] if example.system.strip() else []
        for turn in example.turns:
            messages.append({"role": "user", "content": _question(turn)})
            if turn.output is not None:
                messages.append({"role": "assistant", "content": turn.output})
        for message in messages:
            spellings = self._control_in_answers if message["role"] == "assistant" else self._control
            message["content"] = marks.around(spellings, message["content"])
        return messages

    def _render(self, messages: list[Message], row: int, *, ask: bool) -> str:
        import jinja2

        where = f"row {row}: " if row else ""
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self._dateless,
                tokenize=False,
                add_generation_prompt=ask,
                date_string=f"{DATE:%d %b %Y}",
            )
        except Exception as error:  # a chat template is a program of its author's and can raise anything
            if type(error) is jinja2.TemplateError:  # the template's own raise_exception()
                raise BadMessages(f"{where}the base's chat template refuses this conversation: {error}") from error
            raise BadTemplate(f"{where}the base's chat template fails: {type(error).__name__}: {error}") from error
        return str(text)

    # --- earlier answers ---
    def _answers(self, example: Example, asked: list[Message], prompt: str, marks: Marks) -> list[tuple[int, int]]:
        """Where earlier answers stand in `prompt`, those that are written as the model would write them.

        The conversation is rendered a second time with a pin at the end of every text, so that the work grows with
        the length of the conversation and not with its square.
        """
        if len(example.turns) == 1:
            return []
        pinned = [
            message if message["role"] == "system" else {**message, "content": marks.pinned(message["content"])}
            for message in asked
        ]
        stretches = self._render(pinned, example.row, ask=True).split(marks.pin)
        if len(stretches) != 2 * len(example.turns) or "".join(stretches) != prompt:
            return []
        found: list[tuple[int, int]] = []
        at = 0
        for number, turn in enumerate(example.turns[:-1]):
            before, answer, after = stretches[2 * number : 2 * number + 3]
            at += len(before)
            start = _skip(answer, _question(turn), self._end.before)
            end = self._end_in(after, marks)
            if not self._end.token:
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
    def _continued(self, prompt: str, messages: list[Message], example: Example, marks: Marks) -> str:
        """What the model is to write after `prompt`, given the conversation with its answer. Raises BadTemplate.

        Where the template changes what stands before the last question once that is answered (Mistral's moves the
        system text to the one that awaits its answer), what follows the question decides.
        """
        *earlier, asked, answered = messages
        whole = self._render(messages, example.row, ask=False)
        written = _written(prompt, whole, answered["content"])
        if written is None:
            pinned = [*earlier, {**asked, "content": marks.pinned(asked["content"])}]
            waiting = self._render(pinned, example.row, ask=True).rpartition(marks.pin)[2]
            ended = self._render([*pinned, answered], example.row, ask=False).rpartition(marks.pin)[2]
            written = _written(waiting, ended, answered["content"])
        if written is None:
            raise _rewritten(prompt, whole, example)
        return written


def template_hash(text: str) -> str:
    """SHA-256 of a chat template, in hex: what an adapter's card knows it by."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _question(turn: Turn) -> str:
    return f"{turn.instruction}\n\n{turn.input}" if turn.input.strip() else turn.instruction


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
    """`answer` as it goes on from a prompt that ends with the opened `tag`: its thoughts first, or none.

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
    where = f"row {example.row}: " if example.row else ""
    at = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
    near = slice(max(0, at - 10), at + 30)
    return BadTemplate(
        f"{where}the base's chat template rewrites the prompt once the answer is there, so what is trained would not "
        f"be what is served: {prompt[near]!r} becomes {whole[near]!r}. Choose another template (alpaca)"
    )
