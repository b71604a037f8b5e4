"""What a person should do now, and what would make the next adapter better."""

from __future__ import annotations

from alpaca.evaluation.gained import Gained
from alpaca.evaluation.history import History
from alpaca.evaluation.results import Measured, Sweep
from alpaca.evaluation.signs import Forgetting
from alpaca.words import are, plural

EASED = 0.6  # a smaller scale is worth naming if it leaves at most this share of the rise of the general loss
REPLAY, MOST_REPLAY = 0.1, 0.3  # the ratio that is suggested first, and the one beyond which it isn't raised
KEPT = 0.9  # share of the gain that the recommended scale keeps


def advise(measured: Measured, kind: Gained, forgetting: Forgetting, *, proved: bool) -> str:
    """The verdict's third sentence. `proved`: whatever the answers say could be checked, and holds."""
    if kind == Gained.NOTHING:
        return (
            "Don't use it. Look at the data (python -m alpaca.data FILE), then train longer (--num_epochs) or with a "
            "higher --learning_rate."
        )
    if measured.of_text:
        return (
            "Text teaches a language or a subject, not to answer: train rows with questions and answers on top of it "
            "(--adapter_path), then ask it questions whose answers you know."
        )
    use = "use it for questions like yours"
    if kind == Gained.MANNER:
        use = "use it for how it writes, and trust nothing that it says"
    if forgetting >= Forgetting.CLEAR:
        use += ", and for nothing else"
    if proved:
        return f"All that its answers say could be checked, and holds: {use}."
    own = 0 if measured.facts is None else measured.facts.adapter.wrong
    doubt = f", and {plural(own, 'number or name', 'numbers and names')} in them {are(own)} not in your rows"
    read = _read(len(measured.samples))
    return f"Whether its answers are true was not tested{doubt if own else ''}: {read}, then {use}."


def _read(answers: int) -> str:
    if not answers:
        return "ask it questions whose answers you know"
    return f"read the {answers} below, the most doubtful first" if answers > 1 else "read the one below"


def hints(
    measured: Measured, kind: Gained, forgetting: Forgetting, history: History, replay_ratio: float | None
) -> list[str]:
    """What would make the next one better, the weightiest first."""
    found = []
    if (familiar := history.familiar) is not None and familiar.strange:
        language = familiar.language or "the language of your rows"
        found.append(
            f"The base hardly knows {language}: byte by byte, your answers surprise it {familiar.times:.1f} times as "
            f"much as English ones. Take a larger base, or one that knows {language}."
        )
    if kind == Gained.MANNER:
        found.append(
            "For more of the matter: more rows, several on each fact, more epochs (--num_epochs), or a larger base."
        )
    if history.still_falling is not None and kind != Gained.NOTHING:
        found.append(
            "The held-out loss was still falling when the training ended: train longer (--num_epochs), or take a "
            "larger base."
        )
    scale = easier_scale(measured.sweep)
    now = f"adapter_scale {scale:g} keeps at least {KEPT:.0%} of what it learned and loses less" if scale else ""
    if forgetting >= Forgetting.CLEAR and kind != Gained.NOTHING:
        again = _train_again(replay_ratio)
        found.append(f"{again}; until then, {now}." if now else f"{again}.")
    elif forgetting >= Forgetting.UNSURE and now:
        found.append(f"If what was lost matters, {now}.")
    return found


def _train_again(replay_ratio: float | None) -> str:
    if not replay_ratio:
        return f"Train again with --replay_ratio {REPLAY:g}, which mixes general rows in"
    if replay_ratio < MOST_REPLAY:
        return f"Train again with --replay_ratio {min(MOST_REPLAY, 2 * replay_ratio):g} instead of {replay_ratio:g}"
    return "Train again for fewer epochs (--num_epochs) or with a lower --learning_rate"


def easier_scale(sweep: Sweep | None) -> float | None:
    """The recommended scale, where it is below 1 and eases the forgetting enough to be worth a word."""
    if sweep is None or sweep.recommended is None or sweep.recommended == 1.0:
        return None
    general = {point.scale: point.general for point in sweep.points}
    rise, eased = general[1.0] - general[0.0], general[sweep.recommended] - general[0.0]
    return sweep.recommended if rise > 0 and eased <= EASED * rise else None
