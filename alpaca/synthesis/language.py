"""A language that rows are to be in: what a model is told, and the sign by which it is known again."""

from __future__ import annotations

from dataclasses import dataclass

from alpaca.data.languages import COMMON_WORDS, OWN_LETTERS, SCRIPTS, UNCLEAR, language_of
from alpaca.errors import BadSetting
from alpaca.words import one_line

CODES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "pt": "Portuguese", "it": "Italian",
    "nl": "Dutch", "sv": "Swedish", "da": "Danish", "no": "Norwegian", "nb": "Norwegian", "fi": "Finnish",
    "pl": "Polish", "cs": "Czech", "hu": "Hungarian", "ro": "Romanian", "tr": "Turkish", "id": "Indonesian",
    "ms": "Malay", "vi": "Vietnamese", "zh": "Chinese", "zh-hans": "Simplified Chinese",
    "zh-hant": "Traditional Chinese", "ja": "Japanese", "ko": "Korean", "ru": "Russian", "uk": "Ukrainian",
    "kk": "Kazakh", "sr": "Serbian", "mk": "Macedonian", "ar": "Arabic", "fa": "Persian", "ur": "Urdu",
    "el": "Greek", "he": "Hebrew", "th": "Thai", "hi": "Hindi", "mr": "Marathi", "bn": "Bengali", "ta": "Tamil",
    "te": "Telugu", "ka": "Georgian", "hy": "Armenian", "km": "Khmer", "gu": "Gujarati", "ml": "Malayalam",
    "kn": "Kannada", "am": "Amharic",
}  # fmt: skip
SIGNS = {
    *COMMON_WORDS, *SCRIPTS.values(), "Chinese", "Japanese",
    *(language for pairs in OWN_LETTERS.values() for language, _ in pairs),
}  # fmt: skip
# Told apart by letters that a short text may lack.
RELATED = [
    *({*(language for language, _ in OWN_LETTERS[script]), SCRIPTS[script]} for script in OWN_LETTERS),
    {"Chinese", "Japanese"},
]
ENOUGH = 80  # characters
NAMES = {name.casefold(): name for name in CODES.values()} | {sign.casefold(): sign for sign in SIGNS}


@dataclass(frozen=True, slots=True)
class Language:
    """`sign`: what alpaca.data.languages calls it; "" for one that it does not know, which is then not checked."""

    name: str
    sign: str

    def differs(self, text: str) -> str:
        """The other language that a text is in; "" where it is this one, or can't be told."""
        found = language_of(text)
        if not self.sign or found in (UNCLEAR, self.sign):
            return ""
        related = any(self.sign in group and found in group for group in RELATED)
        return "" if related and len(text) < ENOUGH else found

    def is_in(self, text: str) -> bool:
        """Whether a text is surely in this language."""
        return bool(self.sign) and language_of(text) == self.sign


def parse_language(given: str) -> Language:
    """A code (zh, de) or an English name (Chinese); any other name is taken as it stands, and not checked.

    Raises BadSetting for what can't be a language's name.
    """
    text = " ".join(given.split())
    name = CODES.get(text.casefold().replace("_", "-")) or NAMES.get(text.casefold(), "")
    if not name:
        if len(text) < 4 or len(text) > 40 or not text.replace(" ", "").replace("-", "").isalpha():
            raise BadSetting(f"{one_line(given)!r} is no language: write a code such as zh or de, or an English name")
        return Language(text, "")
    return Language(name, _sign(name))


def _sign(name: str) -> str:
    plain = name.removeprefix("Simplified ").removeprefix("Traditional ")
    return next((sign for sign in sorted(SIGNS) if plain in sign.split(" or ")), "")
