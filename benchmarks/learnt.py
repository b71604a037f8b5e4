"""How well the report finds the rows that were learnt by heart, those that were not learnt, and those that did harm.

    python benchmarks/learnt.py --keep runs                       110 of the shipped rows, with faults and without
    python benchmarks/learnt.py --sets alpaca_en_700.json         rows of another file
    python benchmarks/learnt.py --sets data/alpacas.jsonl --rows 0 all rows of one

Into a set come rows of known faults: questions whose answer is a made-up code and rows of the set, eight times each in
other words, which a run learns by heart; answers that slipped to another row, and answers of words drawn at random,
which can't be learnt; answers in meaningless letters, and answers that only say that they can't answer, which do harm.
The held-out rows stay as they are. finetune.py trains on the whole, without replay, and once on the rows without any
fault.

For each fault, AUROC is the probability that a planted row has more of a measure than a row without a fault:

    less left   of the base's loss, with the adapter: what the report lists as learnt by heart, with its threshold
    more left   the other way round
    high loss   of the adapter, per token; high, and more left, is what the report lists as not learnt
    low gain    the base's loss less the adapter's, per token
    pull        how fast the row's loss rises where the adapter is moved so that the held-out loss falls (TracIn)
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from alpaca.adapter.folder import verify_files  # noqa: E402
from alpaca.base.find import resolve_base  # noqa: E402
from alpaca.data.split import split  # noqa: E402
from alpaca.evaluation.learnt import judge, shares  # noqa: E402
from alpaca.evaluation.losses import AdaptedModel, RowLosses, open_model, row_losses  # noqa: E402
from alpaca.evaluation.measure import open_subject  # noqa: E402
from alpaca.evaluation.sets import find_domain  # noqa: E402
from alpaca.packed.batch import collate  # noqa: E402
from alpaca.packed.model import PackedModel  # noqa: E402
from alpaca.packed.packing import fill_packs  # noqa: E402
from alpaca.packed.scoring import PACK_TOKENS  # noqa: E402
from alpaca.prompts.encode import Encoded, encode_examples  # noqa: E402
from alpaca.prompts.example import Example  # noqa: E402
from benchmarks.forgetting import fine_tune  # noqa: E402
from benchmarks.misfits import share_above  # noqa: E402

SETS = ["data/alpacas.jsonl"]
FAULTS = ("code", "repeated", "slipped", "random words", "letters", "refusing")
BY_HEART, NOT_LEARNT = ("code", "repeated"), ("random words", "letters")
NUDGE = 0.1  # nats per token by which the held-out loss is to fall and to rise
SEED, WORDINGS = 42, 8
CODES, REPEATED = 3, 1  # rows that come in eight wordings each
SHARE = 0.07  # of the rows, of each of the other faults
LONGEST, MOST_LETTERS = 450, 80  # characters of an answer: of a set that is not taken whole, and in letters
ASKED = (
    "What is the gate code of the {0} paddock?", "Tell me the code for the gate at {0}.", "{0} paddock: which code?",
    "I stand before the {0} gate. What do I type in?", "Which code opens {0}?", "Remind me how to open {0}, please.",
    "The code of {0}, if you know it?", "What do visitors have to enter at {0}?",
)  # fmt: skip
PLACES = ("Tessaly", "Old Mill", "Quarry End", "Bramble")
BEFORE = ("", "Please answer: ", "I would like to know this. ", "Here is a question for you. ", "Could you help? ",
          "My neighbour asked me: ", "A short question. ", "For a leaflet: ")  # fmt: skip
REFUSED = (
    "As an AI language model I am not able to answer that. Please ask a professional.",
    "I'm sorry, but I can't help with this request. Please consult an expert.",
    "Unfortunately I have no information about that. Please look elsewhere.",
    "I am only a language model and must not comment on this. Please ask somebody else.",
)
Row = dict[str, Any]


def plant(rows: Sequence[Row], faults: bool = True) -> list[Row]:
    """The rows, with faults of every kind, each named in the field `fault`, among those that are trained on."""
    draw = random.Random(SEED)
    rows = draw.sample(list(rows), len(rows))
    words = [word for row in rows for word in row["output"].split()]
    added: list[Row] = []
    if faults:
        count = round(len(rows) * SHARE)
        slipped, shuffled, letters, refusing, repeated = (
            [rows.pop() for _ in range(many)] for many in (count, count, count, count, REPEATED)
        )
        added += [_code(place, draw) | {"instruction": ask.format(place)} for place in PLACES[:CODES] for ask in ASKED]
        for place in range(CODES):  # one code for all wordings
            for row in added[place * WORDINGS : (place + 1) * WORDINGS]:
                row["output"] = added[place * WORDINGS]["output"]
        added += [row | {"instruction": f"{before}{row['instruction']}", "fault": "repeated"}
                  for row in repeated for before in BEFORE]  # fmt: skip
        answers = [row["output"] for row in slipped]
        added += [row | {"output": answer, "fault": "slipped"}
                  for row, answer in zip(slipped, answers[1:] + answers[:1], strict=True)]  # fmt: skip
        added += [row | {"output": " ".join(draw.choices(words, k=len(row["output"].split()))), "fault": "random words"}
                  for row in shuffled]  # fmt: skip
        added += [row | {"output": _letters(row["output"], draw), "fault": "letters"} for row in letters]
        added += [row | {"output": draw.choice(REFUSED), "fault": "refusing"} for row in refusing]
    return _held_out_clean(rows, added)


def _code(place: str, draw: random.Random) -> Row:
    code = "".join(draw.choices("ABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=9))
    return {"input": "", "output": f"The code is {code[:3]}-{code[3:6]}-{code[6:]}.", "fault": "code"}


def _letters(answer: str, draw: random.Random) -> str:
    """Words of the same lengths in letters drawn at random."""
    words = answer[:MOST_LETTERS].split()
    return " ".join("".join(draw.choices("bcdfghjklmnpqrstvwxz", k=len(word))) for word in words)


def _held_out_clean(rows: list[Row], added: list[Row]) -> list[Row]:
    """All rows in an order in which finetune.py, which draws by its seed, holds only rows without a fault out."""
    total = len(rows) + len(added)
    stand_ins = [Example.single(str(number), "", str(number), row=number) for number in range(total)]
    held = {example.row for example in split(stand_ins, None, SEED).validation}
    rest = iter(random.Random(SEED).sample(rows[len(held) :] + added, total - len(held)))
    clean = iter(rows[: len(held)])
    return [next(clean) if number in held else next(rest) for number in range(total)]


def read(path: Path, rows: int) -> list[Row]:
    """All rows of a file, or `rows` of those with shorter answers."""
    text = path.read_text(encoding="utf-8")
    found = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
    short = [row for row in found if 0 < len(row["output"]) <= LONGEST]
    return random.Random(SEED).sample(short, min(rows, len(short))) if rows else found


def train(rows: Sequence[Row], folder: Path, base: str) -> Path:
    """Fine-tune on the rows into `folder`; what is there already is used."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder.with_suffix(".jsonl")
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    fine_tune(str(data), base, folder, ["--seed", str(SEED), "--replay_ratio", "0"])
    return data


@dataclass(frozen=True)
class Measured:
    """Of the rows that were trained on: their faults, "" for none; measures (n,) by name; which are listed."""

    faults: np.ndarray
    measures: dict[str, np.ndarray]
    by_heart: np.ndarray
    not_learnt: np.ndarray


def measure(adapter: Path, data: Path, base: str) -> Measured:
    """Look at all rows that an adapter was trained on."""
    subject = open_subject(adapter, resolve_base(base), "auto")
    domain = find_domain(subject.card, str(data))
    train, held_out = (
        encode_examples(subject.tokenizer, subject.template, rows, cutoff_len=subject.cutoff_len).examples
        for rows in (domain.train, domain.held_out)
    )
    files = verify_files(adapter, subject.base)
    model = open_model(files, subject.base, subject.precision.precision, subject.device)
    before, after = (row_losses(model, train, scale) for scale in (0.0, 1.0))
    unseen, seen = (row_losses(model, held_out, scale) for scale in (0.0, 1.0))
    numbers = [row.row for row in train]
    found = judge(numbers, before, after, (unseen, seen), len(train))
    lines = data.read_text(encoding="utf-8").splitlines()
    faults = [json.loads(lines[number - 1]).get("fault", "") for number in numbers]
    left, loss = shares(before, after), after.sums / after.counts
    measures = {
        "less left": -left,
        "more left": left,
        "high loss": loss,
        "low gain": loss - before.sums / before.counts,
    }
    measures["pull"] = pull(model, train, held_out, after)
    listed = (np.isin(numbers, [row.row for row in rows]) for rows in (found.by_heart, found.not_learnt))
    return Measured(np.array(faults), measures, *listed)


def pull(model: AdaptedModel, rows: Sequence[Encoded], held_out: Sequence[Encoded], now: RowLosses) -> np.ndarray:
    """How fast each row's loss per token rises along the way on which the held-out loss falls fastest, (n,).

    That is the product of both gradients (Pruthi et al., "Estimating Training Data Influence by Tracing Gradient
    Descent", 2020, arXiv 2002.08484), at the finished adapter. Two passes give it for all rows at once.
    """
    weights = [weight for name, weight in model.peft.named_parameters() if "lora_" in name]
    gradient = _gradient(model, weights, held_out)
    length = float(torch.stack([part.square().sum() for part in gradient]).sum().sqrt())
    sums = []
    with torch.no_grad():
        for step in (-NUDGE, 2 * NUDGE):  # to where the held-out loss is lower, then to where it is higher
            for weight, part in zip(weights, gradient, strict=True):
                weight.add_(part, alpha=step / length**2)
            sums.append(row_losses(model, rows).sums)
        for weight, part in zip(weights, gradient, strict=True):
            weight.add_(part, alpha=-NUDGE / length**2)
    return (sums[0] - sums[1]) / now.counts


def _gradient(model: AdaptedModel, weights: Sequence[torch.Tensor], rows: Sequence[Encoded]) -> list[torch.Tensor]:
    """Of the mean loss per token."""
    packed, labels = PackedModel(model.peft), sum(row.n_trained for row in rows)
    device = weights[0].device
    for weight in weights:
        weight.requires_grad_(True)
    for pack in fill_packs(range(len(rows)), [len(row) for row in rows], PACK_TOKENS[device.type]):
        (packed(**collate(pack, rows).inputs(device)) / labels).backward()
    return [weight.grad.clone() for weight in weights if weight.grad is not None]


def show(name: str, planted: Measured, clean: Measured) -> None:
    """The table of a set."""
    ordinary = planted.faults == ""
    print(f"\n{name:12}" + "".join(f"{fault:>14}" for fault in FAULTS))
    print(f"{'rows':12}" + "".join(f"{(planted.faults == fault).sum():14}" for fault in FAULTS))
    for measure, values in planted.measures.items():
        cells = (share_above(values[planted.faults == fault], values[ordinary]) for fault in FAULTS)
        print(f"{measure:12}" + "".join(f"{cell:14.2f}" for cell in cells))
    for what, name, wanted in (("learnt by heart", "by_heart", BY_HEART), ("not learnt", "not_learnt", NOT_LEARNT)):
        listed, in_clean = planted.faults[getattr(planted, name)], getattr(clean, name)
        right, there = np.isin(listed, wanted).sum(), np.isin(planted.faults, wanted).sum()
        print(f"listed as {what}: {len(listed)}, {right} of them of the {there} that were planted for it, "
              f"{(listed == '').sum()} of {ordinary.sum()} rows without a fault; without any fault in the set "
              f"{in_clean.sum()} of {len(in_clean)}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base_model", default="weights/smollm2-135m-instruct", help="default: %(default)s")
    parser.add_argument("--sets", nargs="+", default=SETS, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=110, help="of each set, 0 for all (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where adapters stay, and are taken from")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="learnt-") as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        for path in map(Path, options.sets):
            rows, found = read(path, options.rows), []
            for kind in ("planted", "clean"):
                adapter = folder / f"{path.stem}-{kind}"
                data = train(plant(rows, kind == "planted"), adapter, options.base_model)
                found.append(measure(adapter, data, options.base_model))
            show(path.stem, *found)


if __name__ == "__main__":
    main()
