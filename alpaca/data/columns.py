"""Columns of other names: `--columns prompt=instruction,completion=output` says what a file's own columns are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alpaca.data.shapes import RepeatedField
from alpaca.errors import BadSetting
from alpaca.words import names

OURS = ("instruction", "input", "output", "system", "history", "messages", "conversations", "tools", "text")
# What people call them, in a few languages; only ever a suggestion.
ALSO_CALLED = {
    "instruction": (
        "prompt", "question", "query", "request", "task", "user", "human", "frage", "anweisung", "aufgabe", "anfrage",
        "instruktion", "pregunta", "consigna", "domanda", "consigne", "pergunta", "问题", "問題", "指令", "提问",
        "質問", "指示", "질문", "вопрос", "input",
    ),
    "output": (
        "completion", "answer", "response", "reply", "target", "assistant", "gpt", "antwort", "ausgabe", "respuesta",
        "risposta", "réponse", "reponse", "resposta", "回答", "答案", "输出", "回复", "答え", "出力", "답변", "ответ",
    ),
    "input": ("context", "kontext", "eingabe", "contexto", "contesto", "contexte", "输入", "上下文", "背景", "入力"),
}  # fmt: skip


def parse_columns(text: str) -> dict[str, str]:
    """`theirs=ours` pairs, with commas between them, as {theirs: ours}. Raises BadSetting."""
    columns: dict[str, str] = {}
    for pair in filter(str.strip, text.split(",")):
        theirs, equals, ours = (part.strip() for part in pair.rpartition("="))
        if not equals or not theirs or ours not in OURS:
            raise BadSetting(
                f"columns is {text!r}: {pair.strip()!r} is not THEIRS=OURS, where OURS is one of {', '.join(OURS)}"
            )
        if theirs in columns or ours in columns.values():
            raise BadSetting(f"columns is {text!r}: it names {theirs if theirs in columns else ours!r} twice")
        columns[theirs] = ours
    return columns


def renamed(row: object, columns: Mapping[str, str]) -> object:
    """The row with the names that training reads. A column that takes a name pushes out another that had it."""
    if not columns or not isinstance(row, Mapping):
        return row
    taken = {columns[name] for name in row if name in columns}
    named = {columns.get(name, name): value for name, value in row.items() if name in columns or name not in taken}
    return RepeatedField(named) if isinstance(row, RepeatedField) else named


def suggestion(row: Mapping[str, Any]) -> str:
    """What to add to the command where columns have another name, for the end of a message; else nothing."""
    by_name = {str(name).strip().casefold(): str(name) for name in row}
    found: dict[str, str] = {}
    for ours, others in ALSO_CALLED.items():
        theirs = ours if ours in by_name else next((other for other in others if other in by_name), None)
        if theirs is not None and by_name[theirs] not in found.values():
            found[ours] = by_name[theirs]
    pairs = [f"{theirs}={ours}" for ours, theirs in found.items() if theirs != ours]
    if not {"instruction", "output"} <= found.keys() or not pairs or any("," in pair for pair in pairs):
        return ""
    option = ",".join(pairs)
    return f". Perhaps: --columns {option}" if " " not in option else f'. Perhaps: --columns "{option}"'


def refuse_unknown(columns: Mapping[str, str], seen: Mapping[str, int], source: str) -> None:
    """Raise BadSetting for a column that no row of `source` has; `seen`: names of the columns there are."""
    for theirs in columns:
        if theirs not in seen:
            raise BadSetting(f"columns names {theirs!r}, which {source} does not have (columns found: {names(seen)})")
