"""The known faults of instruction data: each is seen where it is, and not where it only looks like it."""

from __future__ import annotations

import pytest

from alpaca.data.suspicions import SIGNS
from alpaca.prompts.example import Turn

LONG = "Alpacas graze in herds on the high plains. They hum to each other while they eat. "


def turn(instruction: str = "Describe hay.", output: str = "Hay is dried grass.", input: str = "") -> Turn:
    return Turn(instruction, input, output)


def kinds(asked: Turn) -> list[str]:
    return [sign.kind for sign in SIGNS if sign.see(asked) is not None]


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        (turn(output=""), "empty_output"),
        (turn(output=" \n\t"), "empty_output"),
        (turn(output="N/A"), "placeholder_output"),
        (turn(output="nan"), "placeholder_output"),
        (turn(output="None."), "placeholder_output"),
        (turn(output="无。"), "placeholder_output"),
        (turn("Repeat after me", "repeat  after me"), "echo"),
        (turn("Correct it.", "He go home.", input="He go home."), "echo"),
        (turn(output=LONG + "At night they lie down with the"), "cut_off"),
        (turn(output=LONG + "At night they lie down close toge"), "cut_off"),
        (turn(output=LONG + "They eat hay,"), "cut_off"),
        (turn(output="羊驼生活在安第斯山脉的高原上，成群地吃草。" * 3 + "它们彼此之间用轻柔的哼声交流，"), "cut_off"),
        (turn("Write code.", LONG + "\n```python\nprint(1)\n"), "cut_off"),
        (turn(output="Hay.\n\n### Instruction:\nDescribe straw.\n\n### Response:\nStraw."), "merged"),
        (turn(output="1. Eat.\n\n12. Instruction: Write a poem.\nOutput: Roses"), "merged"),
        (turn(output="Hay.\n###\nStraw."), "merged"),
        (turn(output="Hay.\n指令：描述稻草。\n稻草。"), "merged"),
        (turn(output="Hay.\nHuman: And straw?\nAssistant: Straw."), "merged"),
        (turn("Add 3 and 4.\nOutput: 7", "7"), "merged"),
        (turn("Write a Python function that adds two numbers.", "It takes two numbers and adds them."), "code_missing"),
        (turn("Write a query in SQL that lists all users.", "You list every user of the table."), "code_missing"),
        (turn("编写一个计算总和的函数。", "这个函数把两个数加起来。"), "code_missing"),
        (turn("Summarize the following text."), "input_missing"),
        (turn("总结以下文章。", "文章讲的是羊驼。"), "input_missing"),
        (turn("Describe the following image.", "A dog."), "unseeable"),
        (turn("Transcribe this audio clip.", "Hello."), "unseeable"),
        (turn("What is it?", "A cat.", input="![photo](cat.png)"), "unseeable"),
        (turn("Draw a picture of a horse.", "Done."), "unseeable"),
        (turn("描述这张图片。", "一只猫。"), "unseeable"),
        (turn(output="Read https://bit.ly/3xyz for more."), "link"),
        (turn(input="<noinput>"), "no_input"),
        (turn(input="No input required."), "no_input"),
        (turn(input="无输入"), "no_input"),
        (turn(output="Hay.</s>"), "marker"),
        (turn(output="<|im_start|>assistant\nHay.<|im_end|>"), "marker"),
        (turn("[INST] Describe hay. [/INST]"), "marker"),
        (turn("Below is an instruction that describes a task.\n\n### Instruction:\nDescribe hay."), "marker"),
        (turn("{instruction}"), "marker"),
        (turn(output="A cafÃ© on the corner."), "mojibake"),
        (turn(output="It doesnâ€™t matter."), "mojibake"),
        (turn(output="Broken \ufffd here."), "mojibake"),
        (turn(output="A bell \x07 rings."), "control"),
        (turn("\ufeffDescribe hay."), "control"),
        (turn(output="One.\r\nTwo."), "control"),
        (turn(output="Hay is dried grass.\n"), "edges"),
    ],
)  # fmt: skip
def test_a_known_fault_is_seen(asked: Turn, kind: str) -> None:
    assert kind in kinds(asked)


@pytest.mark.parametrize(
    "asked",
    [
        turn(),
        turn("How many alpacas fly?", "None of them does."),
        turn(output=LONG + "At night they lie down."),
        turn("List three plants.", "Those that are named most often are\n1. grass\n2. clover\n3. nettles and docks"),
        turn("Write a poem.", "The alpaca walks on the hill so high\nAnd looks at the clouds in the sky\nAnd hums"),
        turn("Give a recipe.", "Soup\n\nInstructions:\n1. Cut the leeks.\n2. Boil them in water for ten minutes."),
        turn("Give an overview.", "## Feeding\nHay and water.\n\n### Shelter\nThree walls and a roof are enough."),
        turn("Write a Python function that adds.", "def add(a, b):\n    return a + b"),
        turn("Write a script for a short play about hay.", "ANNA: Hay again? BEN: Hay again."),
        turn("Write a workout program.", "Run on Monday, swim on Tuesday."),
        turn("Summarize the following text.", "Hay feeds herds.", input="Hay is what herds eat in winter."),
        turn("Sort the following words: hay, bran, grass", "bran, grass, hay"),
        turn("Paint a picture of words about the sea.", "Grey waves under a low sky."),
        turn("What does image processing mean?", "Working on pictures with a computer."),
        turn("What is at https://alpaca.info/?", "The page https://alpaca.info/ is about alpacas."),
        turn("Write a link.", 'Use <a href="https://example.com">this</a>.'),
        turn("Name the input of a mill.", "Grain.", input="No input is worse than wet grain."),
        turn("Which tag strikes text out in HTML?", "Use <s>text</s> or <del>."),
        turn("Onde fica?", "Em SÃO PAULO, à beira do rio."),
        turn("بماذا تتغذى الألبكة؟", "تتغذى الألبكة على العشب والتبن."),
        turn("Family?", "👨‍👩‍👧 and 🦙🏽 live here."),
        turn("Indent it.", "    def a():\n    pass"),
    ],
)  # fmt: skip
def test_an_ordinary_row_is_left_alone(asked: Turn) -> None:
    assert kinds(asked) == []


def test_every_sign_has_a_name_of_its_own_and_says_what_to_do() -> None:
    assert len({sign.kind for sign in SIGNS}) == len(SIGNS)
    assert all(sign.title and sign.advice for sign in SIGNS)
