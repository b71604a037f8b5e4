"""Templates: the only place where prompt text is made, for training and for serving alike.

A template turns an example into segments: what is given to the model and what the model writes, in turn.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from alpaca.data.example import Example, names
from alpaca.errors import BadMessages, BadTemplate, TemplateNotFound

Spans = tuple[tuple[int, int], ...]
DATE = date(2024, 7, 26)
MAX_REPEATS = 4  # of a placeholder: a stranger's template could make gigabytes of one prompt
TODAY = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")  # how a chat template asks for today's date


class Segment(NamedTuple):
    """A stretch of a conversation's text.

    `trained`: the model writes it, and EOS follows it. `literal`: spans [start, end) of `text` that came from
    outside; in them, the spelling of a control token is ordinary text and must not become that token.
    """

    text: str
    trained: bool
    literal: Spans = ()


class Template(Protocol):
    """How an example becomes text. Training and serving both go through `segments`, so they can't differ."""

    @property
    def name(self) -> str: ...

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts at which an answer is over, should the model go on without an EOS."""

    def segments(self, example: Example) -> list[Segment]:
        """Prompt and response segments in turn; ends with a prompt where the last turn awaits its answer."""

    def card(self) -> dict[str, Any]:
        """The template in full, as JSON; `template_from_card` reads it."""


class AlpacaTemplate:
    """A template in alpaca-lora's JSON format: description, prompt_input, prompt_no_input, response_split.

    `{instruction}` and `{input}` are replaced in one pass, so braces in a user's text stay as they are. A system
    text goes in front, with a blank line after it. A further turn is a blank line and the prompt again from the
    line that heads the instruction; what stands before that line is said only once.
    """

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        """Raises BadTemplate with the reason if prompts can't be made from `fields`."""
        self.name = name
        self.description = _text(name, fields, "description", default="")
        self.prompt_input = _text(name, fields, "prompt_input")
        self.prompt_no_input = _text(name, fields, "prompt_no_input")
        self.response_split = _text(name, fields, "response_split")
        _check_prompt(name, "prompt_input", self.prompt_input, self.response_split, {"instruction", "input"})
        _check_prompt(name, "prompt_no_input", self.prompt_no_input, self.response_split, {"instruction"})
        self._blocks = {prompt: prompt[_block_start(prompt) :] for prompt in (self.prompt_input, self.prompt_no_input)}

    @property
    def stop_strings(self) -> tuple[str, ...]:
        block = self._blocks[self.prompt_no_input]
        header = block[: block.index("{instruction}")].strip() or self.response_split.strip()
        # A plain word such as "User:" may well stand inside an answer; there only a whole new line counts.
        return (f"\n{header}",) if header[0].isalnum() else (f"\n{header}", header)

    def segments(self, example: Example) -> list[Segment]:
        segments: list[Segment] = []
        for number, turn in enumerate(example.turns):
            prompt = self.prompt_input if turn.input.strip() else self.prompt_no_input
            values = {"instruction": turn.instruction, "input": turn.input}
            if number:
                segments.append(fill("\n\n" + self._blocks[prompt], values))
            else:
                segments.append(fill(prompt, values, f"{example.system}\n\n" if example.system.strip() else ""))
            if turn.output is None:
                break
            segments.append(Segment(turn.output, True, ((0, len(turn.output)),)))
        return segments

    def card(self) -> dict[str, Any]:
        return {
            "kind": "alpaca",
            "name": self.name,
            "description": self.description,
            "prompt_input": self.prompt_input,
            "prompt_no_input": self.prompt_no_input,
            "response_split": self.response_split,
        }


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
        return {"kind": "chat", "name": self.name, "chat_template": self.jinja, "sha256": _sha256(self.jinja)}

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
            f"{where}the base's chat template rewrites {what} once the conversation goes on, so what is trained would "
            f"not be what is served: {before[near]!r} becomes {after[near]!r}. Choose another template (alpaca)"
            + (", or use conversations of one turn" if len(example.turns) > 1 else "")
        )

    def _response_end(self, rendered: str, start: int, marks: tuple[str, str] | None) -> int:
        """Where the response that begins at `start` ends: after the template's last EOS, not after a user's."""
        end = rendered.rfind(self._eos, start) if self._eos else -1
        while marks is not None and end > start and rendered[end - 1] == marks[0]:
            end = rendered.rfind(self._eos, start, end)
        return len(rendered) if end < 0 else end + len(self._eos)


def load_template(name: str, tokenizer: Any = None, *, folder: Path | None = None, allow_path: bool = True) -> Template:
    """A template by name, by the path of a .json file (unless `allow_path` is off), "chat", or "auto".

    "auto" is the tokenizer's chat template where there is one, else alpaca. Raises TemplateNotFound with what there
    is, BadTemplate with the reason why a template can't work.
    """
    if name == "auto":
        name = "chat" if tokenizer is not None and tokenizer.chat_template else "alpaca"
    if name == "chat":
        if tokenizer is None:
            raise BadTemplate("the template 'chat' belongs to a base's tokenizer, and no tokenizer was given")
        return ChatTemplate(tokenizer)
    folder = folder or templates_folder()
    path = Path(os.path.expanduser(name))  # unlike Path's own it leaves the name of nobody as it is
    is_path = name.endswith(".json") or path.name != name
    found = path if is_path else folder / f"{name}.json"
    if (allow_path or not is_path) and os.path.isfile(found):  # which takes a name of any length, unlike is_file()
        return _read_template(found)
    there = [*sorted(file.stem for file in folder.glob("*.json")), "chat", "auto"]
    near = difflib.get_close_matches(name[:100], there, n=1)
    meant = f" Did you mean '{near[0]}'?" if near else ""
    raise TemplateNotFound(
        f"no template '{name[:100]}'. There are: {', '.join(there)} (in {folder}).{meant} "
        "Put your own JSON file there" + (" or give its path." if allow_path else ".")
    )


def template_from_card(card: Mapping[str, Any], tokenizer: Any) -> Template:
    """The template that `card()` described. A chat template is the base's own, and must be the same one."""
    if not isinstance(card, Mapping) or card.get("kind") not in ("alpaca", "chat"):
        raise BadTemplate("the adapter's card holds no template of a known kind (alpaca or chat)")
    if card["kind"] == "alpaca":
        name = card.get("name")
        return AlpacaTemplate(name if isinstance(name, str) and name else "alpaca", card)
    if tokenizer is None:
        raise BadTemplate("the template 'chat' belongs to a base's tokenizer, and no tokenizer was given")
    template = ChatTemplate(tokenizer)
    if card.get("sha256") != _sha256(template.jinja):
        raise BadTemplate(
            "the adapter was trained with another chat template than this base has "
            f"(sha256 {str(card.get('sha256'))[:12]}… against {_sha256(template.jinja)[:12]}…); "
            "use the base it was made for"
        )
    return template


def templates_folder() -> Path:
    """`templates/`, next to the package."""
    return Path(__file__).resolve().parent.parent / "templates"


def control_tokens_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches the spelling of a control token, the longest first: a special one, or one that the chat template uses."""
    written = json.dumps(tokenizer.chat_template or "", ensure_ascii=False)
    added = tokenizer.added_tokens_decoder.values()
    control = {token.content for token in added if token.special or token.content in written}
    control.update(map(str, tokenizer.all_special_tokens))
    longest_first = sorted(filter(str.strip, control), key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def fill(text: str, values: Mapping[str, str], front: str = "") -> Segment:
    """Put `values` at their placeholders in one pass, behind `front`, noting where what came from outside stands."""
    placeholder = re.compile(r"\{(" + "|".join(map(re.escape, values)) + r")\}")
    pieces = [front]
    literal = [(0, len(front))] if front else []
    length, copied = len(front), 0
    for found in placeholder.finditer(text):
        fixed, value = text[copied : found.start()], values[found[1]]
        literal.append((length + len(fixed), length + len(fixed) + len(value)))
        pieces += (fixed, value)
        length += len(fixed) + len(value)
        copied = found.end()
    pieces.append(text[copied:])
    return Segment("".join(pieces), False, tuple(literal))


def _block_start(prompt: str) -> int:
    """Where the line begins that heads the instruction: the last one before it that is not blank."""
    before = prompt[: prompt.index("{instruction}")].rstrip()
    return before.rfind("\n") + 1


def _read_template(path: Path) -> AlpacaTemplate:
    try:
        fields = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadTemplate(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise BadTemplate(f"{path}: is not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise BadTemplate(f"{path}: is nested too deeply") from error
    if not isinstance(fields, dict):
        raise BadTemplate(f"{path}: is not a JSON object with prompt_input, prompt_no_input and response_split")
    try:
        return AlpacaTemplate(path.stem, fields)
    except BadTemplate as error:
        raise BadTemplate(f"{path}: {error.message}") from error


def _text(name: str, fields: Mapping[str, Any], field: str, default: str | None = None) -> str:
    value = fields.get(field, default)
    if value is None:
        raise BadTemplate(f"template '{name}' has no '{field}' (found: {names(fields)})")
    if not isinstance(value, str):
        raise BadTemplate(f"template '{name}': '{field}' is a {type(value).__name__}, not text")
    if default is None and not value.strip():
        raise BadTemplate(f"template '{name}': '{field}' is blank")
    return value


def _check_prompt(name: str, field: str, prompt: str, marker: str, needed: set[str]) -> None:
    where = f"template '{name}': '{field}'"
    if doubled := re.search(r"\{\{\s*(instruction|input)\s*\}\}", prompt):
        raise BadTemplate(f"{where} holds {doubled[0]}; write {{{doubled[1]}}} with single braces")
    found = set(re.findall(r"\{([^\W\d]\w*)\}", prompt))
    if missing := needed - found:
        raise BadTemplate(f"{where} lacks the placeholder {{{min(missing)}}}")
    if unknown := found - needed:
        known = " and ".join(f"{{{placeholder}}}" for placeholder in sorted(needed, reverse=True))
        raise BadTemplate(f"{where} holds {{{min(unknown)}}}, which nothing is put into; it may hold {known}")
    if often := [placeholder for placeholder in needed if prompt.count(f"{{{placeholder}}}") > MAX_REPEATS]:
        raise BadTemplate(f"{where} holds {{{min(often)}}} more than {MAX_REPEATS} times")
    at = prompt.rfind(marker)
    if at < 0:
        raise BadTemplate(f"{where} does not hold the response_split {marker!r}")
    if rest := prompt[at + len(marker) :].strip():
        raise BadTemplate(f"{where} goes on with {rest[:40]!r} after the response_split, where the answer must begin")


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


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
