"""Signs that a row teaches what nobody meant to teach: the known faults of instruction data made by models.

Each sign looks at one turn and gives the text that gave it away, or None. A sign is a reason to look, not a proof.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from alpaca.prompts.example import Turn

# --- outputs that say nothing ---------------------------------------------------------------------------------------
PLACEHOLDERS = {
    "n/a", "na", "n.a", "none", "null", "nil", "nan", "undefined", "not applicable", "no output", "<nooutput>",
    "nooutput", "todo", "tbd", "...", "…", "-", "--", "?",
    "无", "无输出", "<无输出>", "不适用", "keine ausgabe", "なし",
}  # fmt: skip
NO_INPUTS = {
    "no input", "noinput", "<noinput>", "<no input>", "no input needed", "no input required", "no input provided",
    "no input necessary", "no input given", "none", "n/a", "na", "null", "nil", "nan", "not applicable", "<empty>",
    "empty", "-", "无", "无输入", "<无输入>", "没有输入", "无需输入", "不需要输入", "keine eingabe", "なし", "入力なし",
}  # fmt: skip


def _only(text: str, known: set[str]) -> str | None:
    short = text.strip() if len(text) < 60 else ""
    return short if short.casefold().rstrip(".。!") in known or short in known else None


def blank(turn: Turn) -> str | None:
    return None if (turn.output or "").strip() else ""


def placeholder(turn: Turn) -> str | None:
    return _only(turn.output or "", PLACEHOLDERS)


def no_input(turn: Turn) -> str | None:
    return _only(turn.input, NO_INPUTS)


# --- the answer does not belong to the question ---------------------------------------------------------------------
def echo(turn: Turn) -> str | None:
    output = _squeezed(turn.output or "")
    for name, text in (("instruction", turn.instruction), ("input", turn.input)):
        if output and output == _squeezed(text):
            return f"equal to the {name}: {(turn.output or '').strip()}"
    return None


def _squeezed(text: str) -> str:
    return " ".join(text.split()).casefold()


MERGED_OUTPUT = re.compile(
    r"^[ \t]*(?:\d+[.)][ \t]*)?(?:#{2,4}[ \t]*)?(?:instruction|task instruction|指令|指示)[ \t]*\d*[ \t]*[:：].*"
    r"|^[ \t]*#{2,4}[ \t]*(?:input|output|response|user|human|assistant|输入|输出|回答|入力|応答)[ \t]*[:：]?[ \t]*$"
    r"|^[ \t]*\d+[.)][ \t]*(?:input|output)[ \t]*[:：].*"
    r"|^[ \t]*#{3,}[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
HUMAN, ASSISTANT = (re.compile(rf"^[ \t]*{who}[ \t]*[:：].*", re.I | re.M) for who in ("human", "assistant"))
MERGED_PROMPT = re.compile(
    r"^[ \t]*(?:\d+[.)][ \t]*)?(?:output|response|输出|回答)[ \t]*[:：][ \t]*\S.*", re.IGNORECASE | re.MULTILINE
)
MERGED_HINTS = ("nstruction", "NSTRUCTION", "###", "nput", "INPUT", "utput", "OUTPUT", "esponse", "uman", "HUMAN",
                "指令", "指示", "输", "回答", "##")  # fmt: skip


def merged(turn: Turn) -> str | None:
    output = turn.output or ""
    if any(hint in output for hint in MERGED_HINTS):
        if found := MERGED_OUTPUT.search(output):
            return found[0].strip()
        if (found := HUMAN.search(output)) and ASSISTANT.search(output, found.end()):
            return found[0].strip()
    if any(hint in turn.instruction for hint in MERGED_HINTS) and (found := MERGED_PROMPT.search(turn.instruction)):
        return f"in the instruction: {found[0].strip()}"
    return None


LANGUAGES = r"python|java|javascript|typescript|c\+\+|c#|sql|html|css|bash|shell|php|ruby|golang|rust|swift|kotlin|perl"
ASKS_FOR_CODE = re.compile(
    r"\b(?:write|create|generate|implement|develop|give|provide|construct|code|make|build|compose|design|produce)\b"
    r"[^.?!\n]{0,40}?(?:"
    rf"\b(?:{LANGUAGES})\b[^.?!\n]{{0,20}}\b(?:code|functions?|scripts?|programs?|query|queries|snippets?|class|method)\b"
    rf"|\b(?:functions?|scripts?|programs?|query|code|class|method)\b[^.?!\n]{{0,20}}\b(?:in|using|with)\s+(?:{LANGUAGES})(?!\w)"
    r"|\bcode snippet\b|\bregular expression\b|\bregex\b)"
    r"|(?:编写|写出|写一|实现一|创建|生成|编一)[^。？！\n]{0,20}(?:代码|函数|查询语句|正则表达式)"
    rf"|(?:{LANGUAGES}) ?(?:脚本|程序|代码|函数)",
    re.IGNORECASE,
)
CODE_HINTS = ("code", "unction", "cript", "rogram", "uer", "regex", "regular", "lass", "method", "代码", "函数", "脚本",
              "程序", "语句", "正则")  # fmt: skip
CODE = re.compile(
    r"```|[=<>{}\[\]\\^|]|\w\(|\bselect\b.{1,300}\bfrom\b|^\s*(?:def|import|echo|print|SELECT)\b", re.I | re.M | re.S
)


def code_missing(turn: Turn) -> str | None:
    asked = turn.instruction
    if not any(hint in asked for hint in CODE_HINTS) or CODE.search(turn.output or ""):
        return None
    found = ASKS_FOR_CODE.search(asked)
    return found[0] if found and (turn.output or "").strip() else None


REFERS = re.compile(
    r"\b(?:the|this|these) (?:following|given|provided|below)(?: \w+){0,2} "
    r"(?:text|sentences?|paragraph|passage|article|poem|story|code|list|words?|phrase|table|email|dialogue|numbers?)\b"
    r"[^:\n\"'“\d]{0,40}$"
    r"|(?:以下|下面|给定|下列|所给)(?:的)?[^：:\n“\"《，,。]{0,6}(?:文本|句子|段落|文章|短文|单词|列表|代码|诗|故事)[^：:\n“\"《]{0,12}$",
    re.IGNORECASE,
)


def input_missing(turn: Turn) -> str | None:
    if turn.input.strip():
        return None
    found = REFERS.search(turn.instruction.rstrip(" \n.。?？!"))
    return found[0].strip() if found else None


SEEN = r"image|picture|photo|photograph|painting|video|audio|recording|screenshot|podcast|sound clip"
UNSEEABLE = re.compile(
    rf"\b(?:this|the (?:following|given|attached|above|below|provided)|(?:attached|following|given|provided)) "
    rf"(?:\w+ )?(?:{SEEN})s?\b(?! (?:of text|format|editing|processing|caption))"
    r"|\[(?:image|picture|photo|audio|video|图片|图像)[^\]\n]{0,40}\]|<(?:image|audio|video)>|!\[[^\]\n]*\]\("
    r"|\b[\w-]{1,60}\.(?:jpe?g|png|gif|webp|bmp|mp3|mp4|wav|avi)\b"
    r"|\b(?:draw|sketch|paint|photograph|generate|create|produce) (?:me )?(?:an?|the) "
    rf"(?:\w+ )?(?:{SEEN}|sketch|drawing)\b"
    r"(?! (?:(?:of|in|with) words|description|caption|title|script|prompt|game|conference|essay|editor))"
    r"|(?:这|该|下面的?|以下|给定的?|附上的?|所给)[张幅段个]?的?(?:图片|图像|照片|视频|音频|录音)"
    r"|(?:画|绘制|生成|创建)[一]?[张幅个]?[^。，\n]{0,8}(?:图片|图像|照片|图画|视频|音频)",
    re.IGNORECASE,
)
UNSEEABLE_HINTS = ("image", "picture", "photo", "paint", "video", "audio", "record", "screenshot", "podcast", "sketch",
                   "draw", "sound", "![", ".jp", ".png", ".gif", ".webp", ".bmp", ".mp3", ".mp4", ".wav", ".avi", "图",
                   "照片", "视频", "音频", "录音")  # fmt: skip


def unseeable(turn: Turn) -> str | None:
    asked = f"{turn.instruction}\n{turn.input}"
    lower = asked.lower()
    if not any(hint in lower for hint in UNSEEABLE_HINTS):
        return None
    found = UNSEEABLE.search(asked)
    return found[0] if found else None


# --- the text itself is damaged -------------------------------------------------------------------------------------
LINK = re.compile(r"(?:https?://|\bwww\.)[^\s<>\"'`）)】\]]+", re.IGNORECASE)
NO_PLACE = re.compile(r"(?:https?://)?(?:www\.)?(?:[\w.-]*\.)?(?:example\.|localhost|127\.0\.0\.1|w3\.org|your)", re.I)


def link(turn: Turn) -> str | None:
    """A link that the question did not hold; those of examples and of namespaces in code don't count."""
    output = turn.output or ""
    if "://" not in output and "www." not in output.lower():
        return None
    for found in LINK.finditer(output):
        if not NO_PLACE.match(found[0]) and found[0] not in turn.instruction and found[0] not in turn.input:
            return found[0].rstrip(".,;:!?")
    return None


MARKER = re.compile(
    r"<\|[\w-]{1,40}\|>|<｜[^｜\n]{1,40}｜>|</s>|^\s*<s>|<(?:unk|pad|bos|eos|start_of_turn|end_of_turn|eot_id)>|\[/?INST\]|<</?SYS>>"
    r"|^[ \t]*#{2,3} ?(?:Instruction|Response|Input|Output):|Below is an instruction that describes a task"
    r"|\{\{? ?(?:instruction|input|output|prompt|response) ?\}?\}|^<(?:nooutput|output)>",
    re.MULTILINE,
)
MARKER_HINTS = ("<|", "<｜", "</s>", "<s>", "<unk>", "<pad>", "<bos>", "<eos>", "_turn>", "<eot_id>", "INST]", "SYS>>",
                "##", "Below is an instruction", "{", "<nooutput", "<output")  # fmt: skip


def marker(turn: Turn) -> str | None:
    """A special token or a template's marker spelled out; the header of a second task in an output is `merged`."""
    for text in (turn.instruction, turn.input, turn.output or ""):
        if any(hint in text for hint in MARKER_HINTS):
            for found in MARKER.finditer(text):
                of_html = found[0] == "</s>" and 0 < text.find("<s>") < found.start()
                if not of_html and (text is not turn.output or "#" not in found[0]):
                    return found[0].strip()
    return None


MOJIBAKE = re.compile(
    "\ufffd|Ã[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹Œ‘’“”•–—˜™š›œžŸ©«®°±´·¼¤¶§¨ª]|â€[\x80-\xbf™œ“”˜¢¦]|ï»¿|锟斤拷|烫烫烫"
)


def mojibake(turn: Turn) -> str | None:
    for text in (turn.instruction, turn.input, turn.output or ""):
        if not text.isascii() and (found := MOJIBAKE.search(text)):
            return text[max(0, found.start() - 15) : found.end() + 15]
    return None


CONTROL = re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\ufeff]|\r")


def control(turn: Turn) -> str | None:
    for text in (turn.instruction, turn.input, turn.output or ""):
        if found := CONTROL.search(text):
            return f"U+{ord(found[0]):04X}"
    return None


def edges(turn: Turn) -> str | None:
    for name, text in (("instruction", turn.instruction), ("input", turn.input), ("output", turn.output or "")):
        if text.strip() and text != stripped(text):
            return f"in the {name}"
    return None


def stripped(text: str) -> str:
    """Without blanks at both ends; but where later lines are indented too, the first keeps its indent, as in code."""
    body = text.rstrip()
    bare = body.lstrip()
    space = body[: len(body) - len(bare)]
    indent = space[space.rfind("\n") + 1 :]
    return indent + bare if indent and f"\n{indent}" in bare else bare


OPEN_WORDS = (
    "the a an of to and or in for with is are was were that which by from as at on if but because such its their our "
    "der die das ein eine und oder von zu mit für ist sind den dem des dass le la les un une des et ou de du à pour "
    "avec est el los las y o en con por para que"
)
CUT = re.compile(
    rf"(?:^|\s)(?:{'|'.join(sorted(set(OPEN_WORDS.split())))})$|[,，、;；(（\[«“「『]$|[^-]-$", re.IGNORECASE
)
ENDED = re.compile(r"[.!?。！？…؟।](?=[\s\"'”’)）」』]|$)|[。！？]")
SHORT = 60  # characters; what is shorter may be a title or a phrase that ends in any way


def cut_off(turn: Turn) -> str | None:
    """The output stops at a comma, a small word, an open bracket or code fence, or in a sentence after others."""
    output = (turn.output or "").rstrip()
    if len(output) < SHORT:
        return None
    last = output[output.rfind("\n") + 1 :]
    tail = f"…{output[-40:]}"
    if output.count("```") % 2:
        return tail
    if output.endswith("```") or not (last[-1].isalnum() or CUT.search(last[-30:])):
        return None
    if CUT.search(last[-30:]):
        return tail
    hashtag = last.rsplit(None, 1)[-1].startswith("#")
    return tail if len(ENDED.findall(last)) >= 2 and len(last) - _end_of_sentence(last) > 15 and not hashtag else None


def _end_of_sentence(line: str) -> int:
    return max(found.end() for found in ENDED.finditer(line))


# --- the list -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Sign:
    """One kind of suspicion: what it is, what to do, how to see it in a turn, and whether `--fix` mends it."""

    kind: str
    title: str
    advice: str
    see: Callable[[Turn], str | None]
    mended: bool = False
    harmless: bool = False


SIGNS = (
    Sign("empty_output", "empty outputs", "training leaves them out; --fix drops them", blank, mended=True),
    Sign("placeholder_output", "outputs such as N/A, None or nan",
         "the model learns to answer nothing; write an answer, or let --fix drop them", placeholder, mended=True),
    Sign("echo", "outputs equal to the instruction or the input",
         "right for a correction with nothing to correct, else write an answer", echo),
    Sign("cut_off", "outputs that break off", "the model learns to stop half-way; finish or remove them", cut_off),
    Sign("merged", "rows with a second task or answer inside",
         "keep the first task only, or make it two rows", merged),
    Sign("code_missing", "answers without the code that is asked for",
         "write the code, or remove the row", code_missing),
    Sign("input_missing", "instructions that speak of a text that is not there",
         "put the text into input, or remove the row", input_missing),
    Sign("unseeable", "images, audio or video in the question",
         "a text model has neither eyes nor ears; remove the row", unseeable),
    Sign("link", "links in outputs",
         "a model makes up addresses; keep those that must be learnt by heart, cut the others", link),
    Sign("no_input", "inputs that say there is no input",
         "<noinput> is taken as none, other words are trained as text; --fix empties them", no_input, mended=True),
    Sign("marker", "special tokens or template markers spelled out",
         "left over from another program: they are trained as plain text; remove them", marker),
    Sign("mojibake", "characters damaged by a wrong encoding",
         "read the source again in its own encoding (see iconv)", mojibake),
    Sign("control", "control characters or byte order marks", "--fix takes them out", control, mended=True),
    Sign("edges", "blanks at the beginning or end of a text", "--fix strips them", edges, mended=True, harmless=True),
)  # fmt: skip
OF_TEXT = ("marker", "mojibake", "control")  # the signs that say something of a passage of plain text
