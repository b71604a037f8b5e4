"""The picture on the report's first screen: what the gain is made of, beside what became of the base's own skills."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alpaca.evaluation.gained import Gained, about, matter_share
from alpaca.evaluation.markup import concat
from alpaca.evaluation.results import Measured, Probing
from alpaca.pages import Html
from alpaca.words import plural


@dataclass(frozen=True)
class Piece:
    """A piece of a bar: its share of the whole, what it is called, and how it looks (a class of the page's style)."""

    share: float
    name: str
    look: str


def picture(measured: Measured, kind: Gained) -> Html:
    """Two bars of HTML, which stay sharp on a phone and are told to those who can't see them."""
    gain = _bar("What it gained on unseen rows", _gain(measured, kind))
    kept = _bar(_tests_title(measured.probing), _tests(measured.probing))
    return Html('<figure class="bars">{}{}</figure>').format(gain, kept)


def _gain(measured: Measured, kind: Gained) -> list[Piece]:
    if kind == Gained.UNKNOWN:
        return [Piece(1, "not measured: no rows were held out", "nothing")]
    if kind == Gained.NOTHING:
        return [Piece(1, "nothing", "nothing")]
    if measured.gain is None:
        return [Piece(1, "how it is written and what it says, not told apart", "manner")]
    matter = 0.0 if kind == Gained.MANNER else matter_share(measured.gain)
    return [
        Piece(1 - matter, f"how it is written: {about(1 - matter)}", "manner"),
        Piece(matter, f"what it says: {about(matter)}", "matter"),
    ]


def _tests_title(probing: Probing | None) -> str:
    if probing is None or not probing.before:
        return "What it forgot"
    return f"The {plural(probing.before, 'small test')} that the base passed"


def _tests(probing: Probing | None) -> list[Piece]:
    if probing is None:
        return [Piece(1, "not tested", "nothing")]
    if not probing.before:
        return [Piece(1, f"the base passed none of {plural(probing.asked, 'test')}", "nothing")]
    lost = probing.lost / probing.before
    return [
        Piece(1 - lost, f"still passed: {probing.before - probing.lost}", "kept"),
        Piece(lost, f"lost: {probing.lost}", "lost"),
    ]


def _bar(title: str, pieces: Sequence[Piece]) -> Html:
    """The title, the bar, and under it what its pieces are."""
    shown = [piece for piece in pieces if piece.share > 0]
    bar = concat(
        Html('<span class="{}" style="width:{}%"></span>').format(piece.look, f"{100 * piece.share:.1f}")
        for piece in shown
    )
    names = concat(Html('<span><i class="{}"></i>{}</span> ').format(piece.look, piece.name) for piece in pieces)
    return Html('<div><h4>{}</h4><div class="bar" aria-hidden="true">{}</div><p>{}</p></div>').format(title, bar, names)
