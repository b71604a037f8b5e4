"""Tools in rows and messages: the calls that an assistant makes, and the schemas of what it may call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from alpaca.errors import BadMessages
from alpaca.prompts.turn import Call, text_problem
from alpaca.words import names, type_name

MOST_NESTED = 64  # levels of a JSON value; schemas have about ten
NOTHING: tuple[Any, ...] = (None, "", [], {})


def read_calls(message: Mapping[str, Any], where: str) -> tuple[Call, ...]:
    """The tools that a message calls, in `tool_calls` or in OpenAI's older `function_call`. Raises BadMessages.

    Either may be JSON as text; `tool_calls` may be a single call.
    """
    calls: list[Call] = []
    for field in ("tool_calls", "function_call"):
        found = _parsed(message.get(field), f"{where}: '{field}'")
        if found in NOTHING:
            continue
        for number, call in enumerate(found if isinstance(found, list | tuple) else [found], 1):
            calls.append(_call(call, f"{where}: '{field}' {number}"))
    return tuple(calls)


def read_tools(value: object) -> str:
    """The schemas of tools as a JSON list, each as {type, function}; "" for none. Raises BadMessages.

    `value`: a list of them or JSON as text; a schema may be the function alone.
    """
    found = _parsed(value, "")
    if found in NOTHING:
        return ""
    schemas = []
    for number, tool in enumerate(found if isinstance(found, list | tuple) else [found], 1):
        if not isinstance(tool, Mapping):
            raise BadMessages(
                f"tool {number} is {type_name(tool)}, not an object with a function's name and parameters"
            )
        whole: Any = tool if isinstance(tool.get("function"), Mapping) else {"type": "function", "function": tool}
        _name(whole["function"], f"tool {number}")
        schemas.append(whole)
    return _json_text(schemas, "tools")


def _call(call: object, where: str) -> Call:
    if not isinstance(call, Mapping):
        raise BadMessages(f"{where} is {type_name(call)}, not an object with a function's name and arguments")
    function: Any = call["function"] if isinstance(call.get("function"), Mapping) else call
    name = _name(function, where)
    given = function.get("arguments", function.get("parameters"))
    arguments = _parsed(given, f"{where}: 'arguments'")
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, Mapping):
        raise BadMessages(f"{where}: 'arguments' is {type_name(arguments)}, not an object")
    call_id = call.get("id")
    if problem := text_problem("" if call_id is None else call_id):
        raise BadMessages(f"{where}: 'id' {problem}")
    return Call(name, _json_text(arguments, f"{where}: 'arguments'"), call_id or "")


def _name(function: Mapping[str, Any], where: str) -> str:
    if "name" not in function:
        raise BadMessages(f"{where} has no 'name' (found: {names(function)})")
    name = function["name"]
    if problem := text_problem(name) or ("" if name.strip() else "is blank"):
        raise BadMessages(f"{where}: 'name' {problem}")
    return str(name)


def _parsed(value: object, where: str) -> Any:
    if not isinstance(value, str) or not value.strip():
        return None if isinstance(value, str) else value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        problem = f"is not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
    except (ValueError, RecursionError):
        problem = "is not JSON that can be read: too deep, or a number with too many digits"
    raise BadMessages(f"{where} {problem}".lstrip())


def _json_text(value: Any, where: str) -> str:
    """The value as JSON, in one spelling: the same schema is the same text, whatever blanks it was written with."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MOST_NESTED:
            raise BadMessages(f"{where} is nested more than {MOST_NESTED} levels deep")
        level = [inner for outer in level for inner in _inside(outer)]
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:  # a date, say, in a table's column
        raise BadMessages(f"{where} can't be written as JSON: {error}") from error
    if problem := text_problem(text):
        raise BadMessages(f"{where} {problem}")
    return text


def _inside(value: Any) -> Sequence[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list | tuple) else ()
