"""The tokenizer's own chat template."""

from __future__ import annotations

import hashlib
import re
from datetime import date
from typing import Any

from alpaca.errors import BadMessages, BadTemplate
from alpaca.prompts.control import control_tokens_pattern
from alpaca.prompts.example import Example
from alpaca.prompts.template import Segment

DATE = date(2024, 7, 26)
TODAY = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")  # how a chat template asks for today's date


class ChatTemplate:
    """The tokenizer's own chat template.

    What the template writes after an answer, up to and including EOS, belongs to the response; what follows EOS
    begins the next prompt. The date is fixed, so that a prompt is the same on every day.
    """

    name = "chat"
    stop_strings: tuple[str, ...] = ()

    def __init__(self, tokenizer: Any) -> None:
        """Raises BadTemplate where the tokenizer has no chat template."""
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise BadTemplate("this base's tokenizer has no chat template; choose another template, such as 'alpaca'")
        try:
            self.jinja: str = tokenizer.get_chat_template()
        except ValueError as error:
            raise BadTemplate(f"the base's chat template can't be used: {error}") from error
        self._control = control_tokens_pattern(tokenizer)
        self._eos: str = tokenizer.eos_token or ""
        self._dateless = TODAY.sub(lambda found: repr(DATE.strftime(found[2])), self.jinja)

    def segments(self, example: Example) -> list[Segment]:
        marks: tuple[str, str] | None = None
        if any(self._control.search(text) for text in _texts(example)):
            marks = _unused_marks(example)
        system = self._marked(example.system, marks)
        messages = [{"role": "system", "content": system}] if example.system.strip() else []
        segments: list[Segment] = []
        done = ""  # rendered text that is already in a segment
        rendered = ""
        for turn in example.turns:
            content = f"{turn.instruction}\n\n{turn.input}" if turn.input.strip() else turn.instruction
            messages.append({"role": "user", "content": self._marked(content, marks)})
            prompt = self._render(messages, example.row, ask=True)
            self._check_prefix(rendered, prompt, example, "the turns before the last")
            segments.append(_unmark(prompt[len(done) :], False, marks))
            if turn.output is None:
                break
            messages.append({"role": "assistant", "content": self._marked(turn.output, marks)})
            rendered = self._render(messages, example.row, ask=False)
            self._check_prefix(prompt, rendered, example, "the prompt")
            end = self._response_end(rendered, len(prompt), marks)
            done = rendered[:end]
            segments.append(_unmark(rendered[len(prompt) : end], True, marks))
        return segments

    def card(self) -> dict[str, Any]:
        return {"kind": "chat", "name": self.name, "chat_template": self.jinja, "sha256": template_hash(self.jinja)}

    def _marked(self, text: str, marks: tuple[str, str] | None) -> str:
        """`text` with `marks` around every control token's spelling in it, to be found again once it is rendered."""
        return text if marks is None else self._control.sub(rf"{marks[0]}\g<0>{marks[1]}", text)

    def _render(self, messages: list[dict[str, str]], row: int, *, ask: bool) -> str:
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

    def _check_prefix(self, before: str, after: str, example: Example, what: str) -> None:
        if after.startswith(before):
            return
        where = f"row {example.row}: " if example.row else ""
        at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(after))
        near = slice(max(0, at - 10), at + 30)
        raise BadTemplate(
            f"{where}the base's chat template rewrites {what} once a conversation continues, so what is trained would "
            f"not be what is served: {before[near]!r} becomes {after[near]!r}. Choose another template (alpaca)"
            + (", or use conversations of one turn" if len(example.turns) > 1 else "")
        )

    def _response_end(self, rendered: str, start: int, marks: tuple[str, str] | None) -> int:
        """Where the response that begins at `start` ends: after the template's last EOS, not after a user's."""
        end = rendered.rfind(self._eos, start) if self._eos else -1
        while marks is not None and end > start and rendered[end - 1] == marks[0]:
            end = rendered.rfind(self._eos, start, end)
        return len(rendered) if end < 0 else end + len(self._eos)


def template_hash(text: str) -> str:
    """SHA-256 of a chat template, in hex: what an adapter's card knows it by."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _texts(example: Example) -> list[str]:
    texts = [example.system]
    for turn in example.turns:
        texts += (turn.instruction, turn.input, turn.output or "")
    return texts


def _unused_marks(example: Example) -> tuple[str, str]:
    """Two private-use characters that the example does not hold."""
    used = set().union(*_texts(example))
    free = (chr(code) for code in range(0xE000, 0xF900) if chr(code) not in used)
    try:
        return next(free), next(free)
    except StopIteration:
        raise BadMessages("the text uses every private-use character there is") from None


def _unmark(text: str, trained: bool, marks: tuple[str, str] | None) -> Segment:
    """Take the marks out again and note what stood between them."""
    if marks is None:
        return Segment(text, trained)
    first, *marked = text.split(marks[0])
    pieces = [first]
    literal: list[tuple[int, int]] = []
    length = len(first)
    for stretch in marked:
        inside, _, after = stretch.partition(marks[1])
        literal.append((length, length + len(inside)))
        pieces += (inside, after)
        length += len(inside) + len(after)
    return Segment("".join(pieces), trained, tuple(literal))
