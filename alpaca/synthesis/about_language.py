"""Tasks about a language: what is asked of a text's wording, which a translation of the text would take away.

Translated, "Correct the grammar: He go home" has nothing to correct any more. The rule is a list of words, in the
languages that instruction sets are mostly in; it finds too much rather than too little.
"""

from __future__ import annotations

import re

from alpaca.data.languages import COMMON_WORDS
from alpaca.prompts.example import Example

_NAMES = "|".join([*(name for name in COMMON_WORDS if " " not in name), "Chinese", "Japanese", "Korean", "Russian",
                   "Arabic", "Latin", "Greek", "Hindi", "Mandarin", "Hebrew"])  # fmt: skip
ABOUT = re.compile(
    r"\b(?:translat\w*|grammar|grammatical\w*|ungrammatical|spell(?:ing|ed)?|misspelled|punctuat\w*|pronounc\w*|"
    r"pronunciation|rhym(?:es?|ing)|synonyms?|antonyms?|homophones?|homonyms?|palindromes?|anagrams?|acronyms?|"
    r"alphabetical(?:ly)?|alphabet|vowels?|consonants?|syllables?|alliterations?|idioms?|puns?|proverbs?|conjugat\w*|"
    r"nouns?|pronouns?|verbs?|adverbs?|adjectives?|prepositions?|participles?|prefix(?:es)?|suffix(?:es)?|"
    r"plural|singular|capitali[sz]e\w*|uppercase|lowercase|upper case|lower case|typos?|proofread\w*|etymology|"
    r"passive voice|active voice|(?:past|present|future|simple|perfect|correct) tense|parts? of speech|"
    r"opposite of the word|different word|unscramble|rearrange the letters|haiku|limerick)\b"
    r"|\b(?:letters?|words?) (?:that |which )?(?:starts?|begins?|ends?|starting|beginning|ending) (?:with|in)\b"
    r"|\b(?:count|how many|number of) (?:the )?(?:letters|words|vowels|characters)\b"
    rf"|\b(?:in|into|to|from) (?:{_NAMES})\b(?! (?:food|cuisine|history|culture|art|law|music))"
    rf"|\b(?:{_NAMES}) (?:words?|sentences?|phrases?|language|translation|equivalent|letters?|text)\b"
    r"|\b(?:übersetz\w*|Grammatik\w*|grammatikalisch\w*|Rechtschreib\w*|Tippfehler\w*|Reime?|reim\w*|Synonyme?|"
    r"Silben?|Buchstaben?|Adjektive?|Verben|Substantive?|Mehrzahl|Zeichensetzung|konjugier\w*)\b"
    r"|\b(?:tradui\w*|traduction|grammair\w*|grammatica\w*|orthograph\w*|rimes?|synonymes?|antonymes?|conjugu\w*|"
    r"traduc\w*|gramática\w*|ortograf\w*|rimas?|sinónimos?|antónimos?|sílabas?)\b"
    r"|翻译|译成|语法|病句|错别字|拼写|拼音|押韵|同义词|近义词|反义词|成语|造句|标点|字母|词性|偏旁",
    re.IGNORECASE,
)


def is_about_language(example: Example) -> bool:
    """Whether one of a row's instructions asks something of the wording."""
    return any(ABOUT.search(turn.instruction) for turn in example.turns)
