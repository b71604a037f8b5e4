"""Replay: how many general rows, which, and when; the run stays one that can be repeated and resumed."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alpaca.adapter.card import read_card
from alpaca.data.general import SHIPPED, split_general
from alpaca.data.reader import read_examples
from alpaca.errors import AlpacaError, BadCheckpoint
from alpaca.paths import CACHE, cache_home
from alpaca.training.checkpoints import checkpoints_in
from alpaca.training.config import FinetuneConfig
from alpaca.training.fit import build_model, make_trainer
from alpaca.training.own_answers import FILE, answer_replay, prompts_to_ask
from alpaca.training.plan import Plan, make_plan
from alpaca.training.remedies import KL
from alpaca.training.replay import draw
from tests.conftest import ROOT
from tests.training.runs import adapter_bytes, kill_at, leftovers, make_rows, settings, train, tree, write_rows


def general_rows(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"say {number}", "output": f"hay and grass {number}"} for number in range(count)]


@pytest.fixture(scope="session")
def general(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 general rows."""
    return write_rows(tmp_path_factory.mktemp("general") / "general.jsonl", general_rows(12))


def plan_of(config: FinetuneConfig) -> tuple[Plan, list[str]]:
    lines: list[str] = []
    return make_plan(config, lines.append), lines


def said(lines: list[str], what: str) -> list[str]:
    return [line[12:] for line in lines if line.startswith(f"{what:12}")]


# --- how many -----------------------------------------------------------------------------------------------------
def test_a_base_with_a_chat_template_gets_a_tenth_and_says_why(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    plan, lines = plan_of(settings(tiny_base, rows, tmp_path, replay_ratio=None))
    assert plan.replay is not None and (plan.replay.ratio, plan.replay.per_epoch) == (0.1, 2)  # 20 rows to train on
    assert "2 of " in said(lines, "replay")[0] and "general.jsonl in each epoch" in said(lines, "replay")[0]
    assert "replay_ratio 0.1 (the base has a chat template" in said(lines, "replay")[1]
    assert "0 turns it off" in said(lines, "replay")[1]


def test_a_base_without_one_gets_none_unless_asked(
    tiny_mha_base: Path, rows: Path, general: Path, tmp_path: Path
) -> None:
    plan, lines = plan_of(settings(tiny_mha_base, rows, tmp_path, replay_ratio=None))
    assert plan.replay is None and plan.examples == plan.train.examples
    assert said(lines, "replay")[0].startswith("none: replay_ratio 0 (the base has no chat template")
    plan, _ = plan_of(settings(tiny_mha_base, rows, tmp_path, replay_ratio=0.2, replay_path=str(general)))
    assert plan.replay is not None and plan.replay.per_epoch == 5


@pytest.mark.parametrize(("ratio", "wanted"), [(0.01, 1), (0.05, 1), (0.1, 2), (0.2, 5), (0.3, 9)])
def test_the_ratio_is_the_share_among_all_rows_of_an_epoch(
    tiny_base: Path, rows: Path, general: Path, tmp_path: Path, ratio: float, wanted: int
) -> None:
    plan, _ = plan_of(settings(tiny_base, rows, tmp_path, replay_ratio=ratio, replay_path=str(general)))
    assert plan.replay is not None and [len(drawn) for drawn in plan.replay.draws] == [wanted] * 2
    assert len(plan.validation.examples) == 4  # of the domain alone


def test_a_set_with_too_few_rows_gives_what_it_has_and_says_so(
    tiny_base: Path, rows: Path, general: Path, tmp_path: Path
) -> None:
    plan, lines = plan_of(settings(tiny_base, rows, tmp_path, replay_ratio=0.9, replay_path=str(general)))
    assert plan.replay is not None and plan.replay.per_epoch == 12
    assert "12 of 12" in said(lines, "replay")[0]
    assert "37.5% of its rows; 90.0% was wanted, but there are no more" in said(lines, "replay")[0]


# --- what for -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("base_name", "asked", "weight", "says"),
    [
        ("tiny_base", None, KL, "replay_kl 10 (the base has a chat template: .*): the divergence from the base counts"),
        ("tiny_mha_base", None, 0, "replay_kl 0 (the base has no chat template, .*): these rows are trained on like"),
        ("tiny_base", 0, 0, "replay_kl 0 (as asked): these rows are trained on like the data"),
        ("tiny_mha_base", 2.5, 2.5, "replay_kl 2.5 (as asked): the divergence from the base counts"),
    ],
)
def test_a_tuned_base_teaches_its_replay_rows_itself_unless_asked_otherwise(
    base_name: str, asked: float | None, weight: float, says: str, request: pytest.FixtureRequest, rows: Path,
    general: Path, tmp_path: Path,
) -> None:  # fmt: skip
    config = settings(
        request.getfixturevalue(base_name), rows, tmp_path, replay_ratio=0.2, replay_path=str(general), replay_kl=asked
    )
    plan, lines = plan_of(config)
    assert plan.taught == ((20, weight) if weight else None) and plan.identity()["replay_kl"] == weight
    assert re.match(says.replace("(", r"\(").replace(")", r"\)"), said(lines, "replay")[2])
    plan, lines = plan_of(dataclasses.replace(config, replay_ratio=0))
    assert plan.taught is None and plan.identity()["replay_kl"] == 0 and "replay_kl" not in "".join(lines)


def test_divergence_counts_in_training_and_holds_what_the_base_says(
    talking_base: Path, rows: Path, general: Path, tmp_path: Path
) -> None:
    """The more it counts, the less the base's own answers to the replayed questions are lost."""
    rises = []
    for weight in (0.01, 1.0, 100.0):
        config = settings(
            talking_base, rows, tmp_path / str(weight), replay_ratio=0.3, replay_path=str(general), replay_kl=weight
        )
        plan, _ = plan_of(config)
        trainer = make_trainer(plan, build_model(plan))
        first = len(plan.train.examples)
        kept, packs = plan.examples[first:], [(index,) for index in range(len(plan.examples) - first)]
        before = trainer.loss_on(kept, packs)
        trainer.train()
        rises.append(trainer.loss_on(kept, packs) - before)
    assert rises[0] > rises[1] > rises[2]


# --- which --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rows_there", "count", "epochs"), [(12, 5, 7), (12, 12, 3), (5, 4, 9), (100, 1, 30), (1, 1, 4)]
)
def test_no_row_comes_again_before_all_were_drawn(rows_there: int, count: int, epochs: int) -> None:
    drawn = draw(rows_there, count, epochs, seed=3)
    assert [len(set(epoch)) for epoch in drawn] == [count] * epochs
    flat = [index for epoch in drawn for index in epoch]
    for number in range(len(flat)):
        seen = [flat[:number].count(index) for index in range(rows_there)]
        assert max(seen) - min(seen) <= 1
    assert drawn == draw(rows_there, count, epochs, seed=3)
    assert rows_there == 1 or count == rows_there or drawn != draw(rows_there, count, epochs, seed=4)


def test_every_epoch_holds_each_training_row_once_and_its_own_draw(
    tiny_base: Path, rows: Path, general: Path, tmp_path: Path
) -> None:
    config = settings(tiny_base, rows, tmp_path, replay_ratio=0.2, replay_path=str(general), num_epochs=2.5)
    plan, _ = plan_of(config)
    assert plan.replay is not None and plan.steps_per_epoch == 7 and len(plan.steps) == 7 + 7 + 4
    for epoch, drawn in enumerate(plan.replay.draws[:2]):
        seen = [index for step in plan.steps[7 * epoch : 7 * epoch + 7] for index in step.examples]
        assert sorted(seen) == sorted([*range(20), *(20 + index for index in drawn)])
    assert plan.replay.draws[0] != plan.replay.draws[1]
    for step in plan.steps:
        assert step.tokens == sum(len(plan.examples[index]) for index in step.examples)
        assert step.labels == sum(plan.examples[index].n_trained for index in step.examples)
    first = [[index for index in step.examples if index < 20] for step in plan.steps[:7]]
    assert first != [[index for index in step.examples if index < 20] for step in plan.steps[7:14]]


def test_replay_rows_are_asked_in_the_same_template(
    tiny_mha_base: Path, rows: Path, general: Path, tmp_path: Path
) -> None:
    plan, _ = plan_of(settings(tiny_mha_base, rows, tmp_path, replay_ratio=0.2, replay_path=str(general)))
    for encoded in (plan.examples[0], plan.examples[-1]):
        assert "### Instruction:" in plan.tokenizer.decode(encoded.input_ids)
    assert plan.tokenizer.decode(plan.examples[-1].input_ids).count("say ") == 1


def test_rows_that_measure_forgetting_are_never_trained_on(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    everything = read_examples(str(SHIPPED)).examples
    for path in ("data/general.jsonl", str(SHIPPED)):
        plan, _ = plan_of(settings(tiny_base, rows, tmp_path, replay_ratio=0.9, replay_path=path))
        assert plan.replay is not None
        for_replay, for_measuring = split_general(everything)
        assert plan.replay.rows == for_replay and for_measuring
        assert not {row.key() for row in plan.replay.rows} & {row.key() for row in for_measuring}


def test_the_project_s_own_set_is_found_from_any_folder(
    tiny_base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan, _ = plan_of(settings(tiny_base, rows, tmp_path, replay_ratio=0.1))
    assert plan.replay is not None and Path(plan.replay.source) == ROOT / "data" / "general.jsonl"


def test_copies_of_validation_rows_are_not_replayed(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    plan, _ = plan_of(settings(tiny_base, rows, tmp_path, replay_ratio=0.5, replay_path=str(rows)))
    assert plan.replay is not None and len(plan.replay.rows) == 20
    assert not {row.key() for row in plan.replay.rows} & {row.key() for row in plan.split.validation}


# --- what is refused ----------------------------------------------------------------------------------------------
def no_file(folder: Path) -> str:
    return "nowhere.jsonl"


def bad_rows(folder: Path) -> str:
    return str(write_rows(folder / "bad.jsonl", [*make_rows(3), {"instruction": "no output"}]))


def too_long(folder: Path) -> str:
    return str(write_rows(folder / "long.jsonl", [{"instruction": "hay " * 3000, "output": "grass"}]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_file, "E2001 DataNotFound: the rows for replay: nowhere.jsonl: "),
        (bad_rows, "E2002 BadRows: the rows for replay: .*row 4, output"),
        (too_long, "E2003 NoRowsLeft: .*none of the 1 rows for replay fits in cutoff_len"),
    ],
)
def test_a_set_that_can_t_be_used_is_refused_before_anything_is_made(
    tiny_base: Path, rows: Path, tmp_path: Path, make: Any, message: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(AlpacaError, match=f"(?s)^{message}") as refused:
        train(settings(tiny_base, rows, tmp_path / "out", replay_ratio=0.1, replay_path=path))
    assert "--replay_ratio 0" in str(refused.value)
    assert not (tmp_path / "out").exists()
    train(settings(tiny_base, rows, tmp_path / "out", replay_ratio=0, replay_path=path, num_epochs=0.1))


def test_a_set_that_is_empty_once_validation_rows_are_out_is_refused(
    tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    held = plan_of(settings(tiny_base, rows, tmp_path))[0].split.validation[0].turns[0]
    row = {"instruction": held.instruction, "input": held.input, "output": held.output}
    path = write_rows(tmp_path / "one.jsonl", [row])
    with pytest.raises(AlpacaError, match=r"E2003 NoRowsLeft: .*no row is left for replay"):
        train(settings(tiny_base, rows, tmp_path / "out", replay_ratio=0.1, replay_path=str(path)))


# --- a run with it ------------------------------------------------------------------------------------------------
def test_the_card_and_the_model_card_count_it(tiny_base: Path, rows: Path, general: Path, tmp_path: Path) -> None:
    train(settings(tiny_base, rows, tmp_path / "out", replay_ratio=0.2, replay_path=str(general)))
    card = read_card(tmp_path / "out")
    assert card is not None
    plan, _ = plan_of(settings(tiny_base, rows, tmp_path, replay_ratio=0.2, replay_path=str(general)))
    assert plan.replay is not None
    replay = card.data["replay"]
    assert replay.pop("sha256") == plan.replay.sha256 and "each epoch its own" in replay.pop("draw")
    assert replay == {
        "source": "general.jsonl", "ratio": 0.2, "share": 0.2, "rows": 12, "rows_per_epoch": 5, "rows_seen": 10,
        "answers": "of the set", "kl": 10.0,
    }  # fmt: skip
    assert card.settings["replay_kl"] == 10
    assert card.data["train"] == 20 and card.settings["replay_ratio"] == 0.2
    assert "with 5 of `general.jsonl` in each epoch" in (tmp_path / "out" / "README.md").read_text()
    train(settings(tiny_base, rows, tmp_path / "without"))
    without = read_card(tmp_path / "without")
    assert without is not None and without.data["replay"] is None


LONG: dict[str, Any] = {"num_epochs": 3, "lora_r": 128, "learning_rate": 1e-3, "replay_ratio": 0.2}


@pytest.mark.long
def test_killed_and_resumed_with_replay_ends_with_the_same_bytes_and_another_replay_is_refused(
    tiny_base: Path, rows: Path, general: Path, tmp_path: Path
) -> None:
    changes = LONG | {"lora_dropout": 0.1, "replay_path": str(general)}
    unbroken = settings(tiny_base, rows, tmp_path / "whole", **changes)
    train(unbroken)
    config = settings(tiny_base, rows, tmp_path / "out", **changes, resume_from_checkpoint="auto")
    assert kill_at(config, lambda output: (output / "checkpoint-8").exists()) == -signal.SIGKILL
    before = tree(tmp_path / "out")
    other = write_rows(tmp_path / "other.jsonl", general_rows(13))
    for change, message in [
        ({"replay_ratio": 0.1}, "replay_ratio: 0.2 then, 0.1 now"),
        ({"replay_ratio": 0}, "replay: .* then, null now; replay_ratio: 0.2 then, 0 now|replay_ratio: 0.2 then, 0 now"),
        ({"replay_path": str(other)}, "replay: "),
        ({"replay_kl": 0}, "replay_kl: 10.0 then, 0.0 now"),
        ({"replay_self": True}, "replay_self: false then, true now"),
    ]:
        with pytest.raises(BadCheckpoint, match=f"is from another run .*({message})"):
            train(settings(tiny_base, rows, tmp_path / "out", **(changes | change), resume_from_checkpoint="auto"))
    assert tree(tmp_path / "out") == before
    train(config)
    assert adapter_bytes(tmp_path / "out") == adapter_bytes(tmp_path / "whole")
    assert leftovers(tmp_path / "out") == []


@pytest.mark.long
def test_the_same_seed_gives_the_same_adapter_with_replay(
    tiny_base: Path, rows: Path, general: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        train(settings(tiny_base, rows, tmp_path / name, seed=seed, replay_ratio=0.2, replay_path=str(general)))
    assert adapter_bytes(tmp_path / "a") == adapter_bytes(tmp_path / "b") != adapter_bytes(tmp_path / "c")


# --- the base's own answers ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def talking_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base, taught to answer `say n` with a few words and to end there (most of the time)."""
    from transformers import AutoModelForCausalLM

    from alpaca.base.load import load_tokenizer
    from alpaca.prompts.encode import encode_examples
    from alpaca.prompts.find import load_template

    folder = tmp_path_factory.mktemp("talking") / "talking"
    tokenizer = load_tokenizer(tiny_base)
    taught = write_rows(folder.parent / "taught.jsonl", general_rows(12))
    encoded = encode_examples(
        tokenizer, load_template("chat", tokenizer), read_examples(str(taught)).examples, cutoff_len=256
    ).examples
    model = AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(25):
        for example in encoded:
            labels = torch.full((1, len(example)), -100)
            for start, end in example.trained:
                labels[0, start:end] = torch.tensor(example.input_ids[start:end])
            model(input_ids=torch.tensor([example.input_ids]), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def answers(folder: Path) -> list[str]:
    return [json.loads(line)["output"] for line in (folder / FILE).read_text(encoding="utf-8").splitlines()]


def self_settings(base: Path, rows: Path, general: Path, output: Path, **changes: Any) -> FinetuneConfig:
    own: dict[str, Any] = {"replay_path": str(general), "replay_self": True, "num_epochs": 2, "replay_ratio": 0.2}
    return settings(base, rows, output, **(LONG | own | changes))


def test_the_base_answers_first_and_its_answers_are_trained_on(
    talking_base: Path, rows: Path, general: Path, tmp_path: Path
) -> None:
    lines = train(self_settings(talking_base, rows, general, tmp_path / "out"))
    card = read_card(tmp_path / "out")
    assert card is not None
    replay, kept = card.data["replay"], answers(tmp_path / "out")
    assert replay["answers"] == "of the base itself" and replay["asked"] == 10  # two epochs of five
    assert replay["asked"] == replay["rows"] + replay["cut_off"] + replay["empty"]
    assert replay["rows"] == len(kept) >= 5 and all("hay" in answer for answer in kept)
    assert any("the base answers 10 prompts first" in line for line in said(lines, "replay"))
    assert len(read_examples(str(tmp_path / "out" / FILE)).examples) == len(kept)  # as --data_path takes them
    again = train(self_settings(talking_base, rows, general, tmp_path / "again"))
    assert adapter_bytes(tmp_path / "again") == adapter_bytes(tmp_path / "out")
    assert any(
        line.startswith("10 of the base's 10 own answers were made before, in ") for line in said(again, "replay")
    )
    assert not any("prompts first" in line for line in again)


def test_answers_made_before_are_made_again_where_they_are_damaged_or_of_another_template(
    talking_base: Path, rows: Path, general: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "kernels").symlink_to((cache_home() / "kernels").resolve())
    monkeypatch.setenv(CACHE, str(cache))
    train(self_settings(talking_base, rows, general, tmp_path / "first"))
    (kept,) = (cache / "own_answers").iterdir()
    before = kept.read_bytes()
    kept.write_bytes(before.replace(b"hay", b"ham", 1))
    lines = train(self_settings(talking_base, rows, general, tmp_path / "second"))
    assert any("1 of the 10 answers" in line and "damaged" in line for line in said(lines, "warning"))
    assert any("the base answers 1 prompts first" in line for line in said(lines, "replay"))
    assert sorted(kept.read_bytes().splitlines()) == sorted(before.splitlines())
    assert adapter_bytes(tmp_path / "second") == adapter_bytes(tmp_path / "first")
    train(self_settings(talking_base, rows, general, tmp_path / "third", prompt_template_name="alpaca_short"))
    assert len(list((cache / "own_answers").iterdir())) == 2


@pytest.mark.long
def test_a_resumed_run_uses_the_answers_there_are(
    talking_base: Path, rows: Path, general: Path, tmp_path: Path
) -> None:
    unbroken = self_settings(talking_base, rows, general, tmp_path / "whole")
    train(unbroken)
    config = self_settings(talking_base, rows, general, tmp_path / "out", resume_from_checkpoint="auto")
    assert kill_at(config, lambda output: (output / "checkpoint-4").exists()) == -signal.SIGKILL
    kept = (tmp_path / "out" / FILE).read_bytes()
    for damage in (b"", kept.replace(b"hay", b"ham", 1)):
        if damage:
            (tmp_path / "out" / FILE).write_bytes(damage)
        else:
            (tmp_path / "out" / FILE).unlink()
        with pytest.raises(BadCheckpoint, match=f"{FILE} (is missing|was changed)"):
            train(config)
    (tmp_path / "out" / FILE).write_bytes(kept)
    lines = train(config)
    assert any("answers of the base from" in line for line in said(lines, "replay"))
    assert adapter_bytes(tmp_path / "out") == adapter_bytes(tmp_path / "whole")
    assert checkpoints_in(tmp_path / "out")[-1].name == checkpoints_in(tmp_path / "whole")[-1].name


def test_answers_that_never_end_are_left_out_and_where_none_is_left_it_is_told(
    tiny_base: Path, rows: Path, general: Path, tmp_path: Path
) -> None:
    """The embedding of EOS, which is its head as well, is 0: another token is always likelier."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "endless"))
    weights = load_file(str(base / "model.safetensors"))
    weights["model.embed_tokens.weight"][2] = 0.0
    save_file(weights, str(base / "model.safetensors"), metadata={"format": "pt"})
    config = self_settings(base, rows, general, tmp_path / "out", replay_kl=0)
    with pytest.raises(AlpacaError, match=r"E2003 NoRowsLeft: none of the base's 10 own answers .*10 cut off"):
        train(config)
    plan = make_plan(self_settings(base, rows, general, tmp_path / "out"), lambda line: None)
    (tmp_path / "out").mkdir(exist_ok=True)
    taught, answered = answer_replay(plan, lambda line: None)  # nothing is learned from where these end
    assert answered.cut_off == 0 and len(taught) == 10 - answered.empty >= 5  # some hold characters that no text has
    assert leftovers(tmp_path / "out") == []


def test_a_dry_run_asks_nothing_and_conversations_are_asked_their_first_turn(
    tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    turns = [("system", "be kind"), ("user", "say 1"), ("assistant", "one"), ("user", "2"), ("assistant", "two")]
    said_before = [{"role": role, "content": text} for role, text in turns]
    path = write_rows(tmp_path / "chat.jsonl", [{"messages": said_before}])
    config = self_settings(tiny_base, rows, path, tmp_path / "out", dry_run=True)
    lines = train(config)
    assert any("the base answers these rows itself" in line for line in lines)
    assert not (tmp_path / "out").exists()
    (prompt,) = prompts_to_ask(plan_of(config)[0])
    assert (prompt.system, [turn.instruction for turn in prompt.turns]) == ("be kind", ["say 1"])
    assert prompt.turns[0].output is None
