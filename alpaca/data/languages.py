"""The language of a text: by its script and, where several languages share one, by their commonest words or letters.

Enough to see what a data set is made of. Short texts and code have no language here, and close relatives that are not
in the lists below count as their neighbour.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from alpaca.prompts.example import Example

UNCLEAR = "unclear (short, code, or a language not known here)"
LOOKED_AT, SHORT = 800, 200  # characters of a text, and of an answer that is looked at together with its question
FEWEST = 3  # letters; ideographs count three times
FEWEST_WORDS = 2  # different common words; one alone may be a name or belong to several languages
FEWEST_SHARE = 0.08  # of all words; code has fewer, prose about three times as many
COMMON_WORDS = {
    "English": (
        "the and of to in is that for it with as are was on be this by from or you an have can which "
        "what how who why when where give write name these at do does not"
    ),
    "German": (
        "der die das und ist nicht ein eine zu den mit von für auf dem sich auch es im sie werden wird "
        "oder bei wie was warum welche welcher nenne ins wo wer wann einen dieser"
    ),
    "French": (
        "le la les des et est une dans pour que qui sur pas au du avec sont vous ce il par plus ou être "
        "de je suis ne quel quelle comment pourquoi où cite trois votre mon"
    ),
    "Spanish": (
        "el la los las que y en un una es por con para se del al más como son su pero este puede o de me "
        "mi qué cuál cómo dónde muy hasta sobre fue"
    ),
    "Portuguese": (
        "o os as que e em um uma é por com para não se do da dos das mais como são seu ao pode ou de na "
        "no qual quais cite três pelo isso quem"
    ),
    "Italian": (
        "il lo la gli le che e di un una è per con non si del della sono più come nel anche i dei essere "
        "de ha chi quale dove alla dal nella ed mi perché"
    ),
    "Dutch": (
        "de het een en van is niet dat op te in met voor zijn aan ook als er maar wordt bij deze kan of "
        "wat hoe wie waarom waar geef"
    ),
    "Swedish": (
        "och att det som en är på för med inte av den till ett kan har om de så från eller du sig vad hur vem varför"
    ),
    "Danish or Norwegian": (
        "og at det som en er på for med ikke av af den til et kan har om de så fra eller du hvad hva "
        "hvordan hvem hvorfor"
    ),
    "Finnish": "ja on ei se että hän oli ovat tai kun myös mutta voi niin joka ole sen olla kuin ne ovat",
    "Polish": (
        "i w na z że się nie do jest to o jak po co ale od za przez dla są być tak lub może kto dlaczego "
        "gdzie jaka trzy które"
    ),
    "Czech": "a je v na se že to s z do o i pro jako by ale které jsou si nebo být po když aby",
    "Hungarian": "a az és hogy nem is egy meg ez csak de van mint vagy már el ki lehet ha azt volt több",
    "Romanian": "și de la în a nu cu este pe că o din un mai ce să sunt pentru care prin fi sau",
    "Turkish": (
        "ve bir bu da de için ile çok olarak daha gibi ne olan var en kadar sonra ya veya değil şu nedir "
        "nasıl neden kim hangi üç"
    ),
    "Indonesian or Malay": "yang dan di untuk dengan ini itu dari adalah pada tidak dalam akan ke atau juga dapat oleh",
    "Vietnamese": "và của là các có một trong cho được không với những để này người khi đã từ như đó về",
}
OWN_LETTERS = {  # letters that only some languages of a script write
    "CYRILLIC": [("Kazakh", "әғқңұһ"), ("Ukrainian", "іїєґ"), ("Russian", "ыэё"), ("Serbian or Macedonian", "ђјљњћџ")],
    "ARABIC": [("Urdu", "ٹڈڑےں"), ("Persian", "پچژگ")],
}
SCRIPTS = {
    "HANGUL": "Korean", "GREEK": "Greek", "HEBREW": "Hebrew", "ARABIC": "Arabic", "THAI": "Thai",
    "DEVANAGARI": "Hindi or Marathi", "BENGALI": "Bengali", "TAMIL": "Tamil", "TELUGU": "Telugu",
    "GEORGIAN": "Georgian", "ARMENIAN": "Armenian", "KHMER": "Khmer", "GUJARATI": "Gujarati", "MALAYALAM": "Malayalam",
    "KANNADA": "Kannada", "CYRILLIC": "Cyrillic script", "ETHIOPIC": "Amharic",
}  # fmt: skip
DENSE = {"CJK", "HIRAGANA", "KATAKANA", "HANGUL"}
WORD = re.compile(r"[^\W\d_]+")
# A single plain letter says nothing: it may be a variable, a list's number or an initial.
LANGUAGES_OF: dict[str, list[str]] = {}
for _language, _words in COMMON_WORDS.items():
    for _word in _words.split():
        if len(_word) > 1 or not _word.isascii():
            LANGUAGES_OF.setdefault(_word, []).append(_language)


def languages_of(examples: Sequence[Example]) -> dict[str, list[int]]:
    """Row numbers by the language of the answers (with their questions where they are unclear), commonest first."""
    found: dict[str, list[int]] = {}
    for example in examples:
        answers = "\n".join(turn.output or "" for turn in example.turns)
        language = language_of(answers)
        if language == UNCLEAR or language.endswith(" script"):
            asked = "\n".join(f"{turn.instruction}\n{turn.input}" for turn in example.turns)
            language = language_of(f"{asked[:LOOKED_AT]}\n{answers[:SHORT]}")
        found.setdefault(language, []).append(example.row)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def language_of(text: str) -> str:
    """The language's English name, or UNCLEAR."""
    text = text[:LOOKED_AT]
    if text.isascii():
        return _by_words(text)
    scripts: Counter[str] = Counter()
    for letter, count in Counter(text).items():
        script = _script(letter)
        scripts[script] += count * (3 if script in DENSE else 1)
    del scripts[""]
    if not scripts:
        return UNCLEAR
    script, count = scripts.most_common(1)[0]
    if count < FEWEST:
        return UNCLEAR
    if script in ("CJK", "HIRAGANA", "KATAKANA"):
        kana = scripts["HIRAGANA"] + scripts["KATAKANA"]
        return "Japanese" if kana > 0.1 * scripts["CJK"] else "Chinese"
    if script == "LATIN":
        return _by_words(text)
    for language, letters in OWN_LETTERS.get(script, []):
        if any(letter in text for letter in letters):
            return language
    return SCRIPTS.get(script, f"{script.capitalize()} script")


def _by_words(text: str) -> str:
    words = WORD.findall(text.lower())
    scores: Counter[str] = Counter()
    distinct: Counter[str] = Counter()
    for word, count in Counter(words).items():
        for language in LANGUAGES_OF.get(word, ()):
            scores[language] += count
            distinct[language] += 1
    (best, most), (_, second) = (*scores.most_common(2), ("", 0), ("", 0))[:2]
    enough = distinct[best] >= FEWEST_WORDS and most >= FEWEST_SHARE * len(words)
    return best if most > second and enough else UNCLEAR


@functools.cache
def _script(letter: str) -> str:
    """The first word of the letter's Unicode name, such as LATIN; empty for what is no letter."""
    if not letter.isalpha():
        return ""
    name = unicodedata.name(letter, "").partition(" ")[0].partition("-")[0]
    return name.removeprefix("FULLWIDTH").removeprefix("HALFWIDTH")
