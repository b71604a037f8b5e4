"""What a model is told when it is to think up tasks. The card of the rows quotes it in full.

The examples stand as what the assistant said before: even a model that is too small to follow a description goes on in
the form in which it seems to have begun.
"""

from __future__ import annotations

from collections.abc import Sequence

from alpaca.synthesis.language import Language
from alpaca.synthesis.task import NO_INPUT, Task

RULES = """\
Think up tasks for an assistant that reads and writes text, and answer each of them. Mind this:

- No two tasks are alike: each has another subject, is another kind of work and uses other words. Ask, explain, \
rewrite, shorten, plan, compare, sort, extract, correct, calculate, write code, letters, lists or dialogues.
- {language}
- Text alone is enough for each task: no pictures, sound, video, links or files, and nothing that has to be done or \
looked up outside the conversation.
- "Instruction" is one or two sentences that say what is wanted.
- "Input" is the text or the data that the task works on, written out, with names and details as in real life, in at \
most 100 words. It is "{no_input}" where the instruction says everything.
- "Output" is the right and complete answer, in at most 150 words.
- In a task whose answer is one of a few labels, "Label" takes the place of "Output" and is written before its \
"Input", which is then made up so that the label is right for it. Give two or three such pairs, each with another label.
- Write nothing but the tasks.

{ask}"""
ASK_ONE = "Write task {number}."
ASK_MANY = "Write tasks {first} to {last}, all of them new."
ANY_LANGUAGE = "A task is in the language of one of the others."
ONE_LANGUAGE = "New tasks are in {name}: instruction, input and output, whatever the language of the ones before them."


def instruct_prompt(shown: Sequence[Task], count: int, language: Language | None) -> tuple[tuple[str, str], ...]:
    """The conversation, as (role, text), in which these tasks were written and `count` more are asked for."""
    said: list[tuple[str, str]] = []
    for number, task in enumerate(shown, 1):
        said += [("user", ASK_ONE.format(number=number)), ("assistant", task.written(number))]
    first, last = len(shown) + 1, len(shown) + count
    asked = ASK_ONE.format(number=first) if count == 1 else ASK_MANY.format(first=first, last=last)
    said.append(("user", asked))
    rules = ONE_LANGUAGE.format(name=language.name) if language else ANY_LANGUAGE
    opening = RULES.format(language=rules, no_input=NO_INPUT, ask=said[0][1])
    return (("user", opening), *said[1:])
