"""Languages by script and common words."""

from __future__ import annotations

import pytest

from alpaca.data.languages import UNCLEAR, language_of, languages_of
from alpaca.prompts.example import Example


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The alpaca is a small animal that lives in the Andes.", "English"),
        ("Das Alpaka ist ein kleines Tier, das in den Anden lebt.", "German"),
        ("L'alpaga est un animal qui vit dans les Andes et mange de l'herbe.", "French"),
        ("La alpaca es un animal que vive en los Andes y come hierba.", "Spanish"),
        ("A alpaca é um animal que não vive em todos os países.", "Portuguese"),
        ("L'alpaca è un animale che vive nelle Ande e non mangia carne.", "Italian"),
        ("De alpaca is een dier dat in het gebergte van de Andes leeft.", "Dutch"),
        ("Alpaka to zwierzę, które żyje w Andach i nie je mięsa, ale się pasie.", "Polish"),
        ("Alpaka ve lama bir arada yaşar, bu hayvanlar için çok ot gerekir.", "Turkish"),
        ("Lạc đà alpaca là một loài động vật của dãy Andes và không ăn thịt.", "Vietnamese"),
        ("羊驼生活在安第斯山脉，靠吃草为生。", "Chinese"),
        ("羊驼的英文名是 alpaca，学名 Vicugna pacos。", "Chinese"),
        ("アルパカはアンデス山脈に住む動物です。", "Japanese"),
        ("알파카는 안데스 산맥에 사는 동물입니다.", "Korean"),
        ("Альпака — это животное, которое живёт в Андах.", "Russian"),
        ("Альпака — це тварина, яка живе в Андах і їсть траву.", "Ukrainian"),
        ("الألبكة حيوان يعيش في جبال الأنديز.", "Arabic"),
        ("آلپاکا حیوانی است که در کوه‌های آند زندگی می‌کند.", "Persian"),
        ("אלפקה היא חיה שחיה בהרי האנדים.", "Hebrew"),
        ("อัลปากาเป็นสัตว์ที่อาศัยอยู่ในเทือกเขาแอนดีส", "Thai"),
        ("अल्पाका एक जानवर है जो एंडीज में रहता है।", "Hindi or Marathi"),
        ("", UNCLEAR),
        ("42", UNCLEAR),
        ("x = [y + 1]; print(x)", UNCLEAR),
        ("🦙🦙🏽", UNCLEAR),
    ],
)
def test_a_text_has_the_language_it_is_written_in(text: str, language: str) -> None:
    assert language_of(text) == language


def test_the_answer_counts_and_the_whole_row_where_the_answer_is_short() -> None:
    found = languages_of(
        [
            Example.single("Translate this into German.", "Hay", "Das Heu ist für die Herde und nicht zu nass.", row=1),
            Example.single("What is the opposite of the word that is given?", "wet", "dry", row=2),
            Example.single("What is the name of the animal?", "", "An alpaca is in the book.", row=3),
        ]
    )
    assert found == {"English": [2, 3], "German": [1]}
    assert list(found) == ["English", "German"]
