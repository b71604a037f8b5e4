"""Training on top of an adapter: going on with it, or beside it with --new_adapter, which the engine then composes."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel

from alpaca.adapter.ancestry import file_sha256
from alpaca.adapter.archive import pack
from alpaca.adapter.card import Card, read_card
from alpaca.base.load import load_model, load_tokenizer
from alpaca.errors import AlpacaError, BadCheckpoint
from alpaca.evaluation.losses import row_losses
from alpaca.evaluation.measure import open_subject
from alpaca.evaluation.on_top import on_top_of
from alpaca.evaluation.sets import find_domain
from alpaca.evaluation.tuned_adapter import TunedAdapter
from alpaca.prompts.encode import encode_examples
from alpaca.serving.adapters import AdapterStore
from alpaca.serving.composition import Composition, Part
from alpaca.serving.inputs import request_from_inputs
from alpaca.serving.limits import EngineLimits
from alpaca.serving.loading import load_base, open_engine
from alpaca.training.cli import read_settings
from alpaca.training.plan import make_plan
from tests.conftest import make_base
from tests.serving.peft_adapters import edit_config, make_adapter
from tests.training.runs import adapter_bytes, kill_at, make_rows, settings, train, tree, write_rows

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def lora_a(tiny_base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of rank 4 on two layers' kinds, trained for a few steps."""
    folder = tmp_path_factory.mktemp("adapters") / "lora-a"
    train(settings(tiny_base, rows, folder, lora_target_modules=["q_proj", "down_proj"], learning_rate=2e-2))
    return folder


@pytest.fixture(scope="module")
def more_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 rows of which none is among those of `lora_a`."""
    return write_rows(tmp_path_factory.mktemp("more") / "more.jsonl", make_rows(40)[24:])


@pytest.fixture(scope="module")
def lora_b(tiny_base: Path, more_rows: Path, lora_a: Path) -> Path:
    """A second adapter, beside `lora_a`."""
    folder = lora_a.parent / "lora-b"
    train(beside(tiny_base, more_rows, folder, lora_a))
    return folder


def beside(base: Path, data: Path, output: Path, adapter: Path, **changes: Any) -> Any:
    """A run with --new_adapter, on other layers and strong enough to change answers."""
    changes = {"learning_rate": 2e-2, "lora_target_modules": ["v_proj", "down_proj", "up_proj"]} | changes
    return settings(base, data, output, adapter_path=str(adapter), new_adapter=True, **changes)


def going_on(base: Path, data: Path, output: Path, adapter: Path, **changes: Any) -> Any:
    return settings(base, data, output, **({"adapter_path": str(adapter), "lora_r": 16, "lora_alpha": 32} | changes))


def card_of(folder: Path) -> Card:
    card = read_card(folder)
    assert card is not None
    return card


# --- what it begins with ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("new_adapter", [False, True], ids=["going on", "beside"])
def test_it_begins_with_the_adapters_loss_and_leaves_its_files_alone(
    new_adapter: bool, tiny_base: Path, rows: Path, lora_a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(lora_a)
    make = beside if new_adapter else going_on
    lines = train(make(tiny_base, rows, tmp_path / "out", lora_a, learning_rate=1e-3))
    assert tree(lora_a) == before
    card, ancestor = card_of(tmp_path / "out"), card_of(tmp_path / "out").on_top_of
    assert card.losses["validation_before"] == pytest.approx(card_of(lora_a).losses["validation_after"], abs=1e-5)
    start = "the base with lora-a" if new_adapter else "lora-a"
    assert any(line.endswith(f"validation loss {card.losses['validation_before']:.4f} ({start})") for line in lines)
    assert ancestor is not None
    assert (ancestor.name, ancestor.how) == ("lora-a", "beside" if new_adapter else "continued")
    assert ancestor.weights_sha256 == file_sha256(lora_a / WEIGHTS)
    assert (ancestor.data_source, ancestor.rows, ancestor.ancestor) == ("rows.jsonl", 20, None)
    readme = (tmp_path / "out" / "README.md").read_text()
    assert ('set_adapter(["default", "beside_1"])' in readme) == new_adapter


def test_whoever_goes_on_takes_over_shape_and_template(
    tiny_base: Path, more_rows: Path, lora_a: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    plan = make_plan(going_on(tiny_base, more_rows, tmp_path / "out", lora_a, dry_run=True), lines.append)
    assert (plan.config.lora_r, plan.config.lora_alpha) == (4, 8)
    assert plan.config.lora_target_modules == ["down_proj", "q_proj"]
    said = "\n".join(lines)
    assert "rank 4, alpha 8 on down_proj, q_proj: taken from lora-a" in said
    assert "chat (lora-a was trained with it)" in said


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ({"use_dora": True}, {}),
        ({"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}}, {}),
        ({}, {"quantization": "int8", "gradient_checkpointing": True}),
    ],
    ids=["dora", "patterns", "int8"],
)
def test_adapters_of_another_tool_and_every_kind_are_gone_on_with(
    kind: dict[str, Any], changes: dict[str, Any], tiny_base: Path, more_rows: Path, tmp_path: Path
) -> None:
    theirs = make_adapter(tiny_base, tmp_path / "theirs", spread=0.1, **kind)
    lines = train(going_on(tiny_base, more_rows, tmp_path / "out", theirs, **changes))
    assert any("theirs has no card: that it fits this base is known by names and shapes only" in line for line in lines)
    given, made = (json.loads((place / "adapter_config.json").read_text()) for place in (theirs, tmp_path / "out"))
    for name in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_dora", "use_rslora"):
        assert made[name] == given[name]
    assert sorted(made["target_modules"]) == sorted(given["target_modules"])


def test_an_archive_will_do(tiny_base: Path, rows: Path, lora_a: Path, tmp_path: Path) -> None:
    archive = pack(lora_a, tmp_path / "packed.zip")
    plan = make_plan(going_on(tiny_base, rows, tmp_path / "out", archive, dry_run=True), lambda line: None)
    assert plan.on_top is not None
    assert plan.on_top.ancestor.name == "packed"
    assert plan.on_top.ancestor.weights_sha256 == file_sha256(lora_a / WEIGHTS)


# --- an adapter on an adapter equals the composition asked of the engine --------------------------------------------
def test_the_engine_answers_as_the_training_left_both(
    tiny_base: Path, more_rows: Path, lora_a: Path, lora_b: Path
) -> None:
    assert json.loads((lora_b / "adapter_config.json").read_text())["r"] == 4
    model: Any = PeftModel.from_pretrained(load_model(tiny_base, "fp32"), str(lora_a), adapter_name="a")
    model.load_adapter(str(lora_b), adapter_name="b")
    tokenizer: Any = load_tokenizer(tiny_base)
    prompts = ["task 3 hay", "What does the alpaca eat?", "field"]

    def by_peft(*adapters: str) -> list[str]:
        model.base_model.set_adapter(list(adapters))
        found = []
        for prompt in prompts:
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            answer = model.generate(**ids, do_sample=False, max_new_tokens=24, pad_token_id=3)
            found.append(tokenizer.decode(answer[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
        return found

    engine = open_engine(load_base(str(tiny_base), "fp32", say=lambda line: None), limits=EngineLimits())
    try:
        together = Composition((Part(lora_a), Part(lora_b)))
        asked = [request_from_inputs(prompt=prompt, temperature=0, max_tokens=24) for prompt in prompts]
        streams = [engine.submit(dataclasses.replace(request, adapter=together)) for request in asked]
        answers = ["".join(chunk.text for chunk in stream) for stream in streams]
    finally:
        engine.close()
    assert answers == by_peft("a", "b")
    assert answers not in (by_peft("a"), by_peft("b"))


def test_the_report_measures_both_together_and_says_so(
    tiny_base: Path, more_rows: Path, lora_a: Path, lora_b: Path
) -> None:
    subject = open_subject(lora_b, tiny_base, "fp32")
    assert isinstance(subject.tuned, TunedAdapter)
    assert [files.folder for files in subject.tuned.all] == [lora_b, lora_a]
    card = card_of(lora_b)
    held_out = find_domain(card, str(more_rows)).held_out
    rows = encode_examples(subject.tokenizer, subject.template, held_out, cutoff_len=subject.cutoff_len).examples
    model = subject.tuned.scoring(subject.held)
    assert row_losses(model, rows).mean == pytest.approx(card.losses["validation_after"], abs=1e-4)
    first, measured, losses = on_top_of("lora-b", card)
    assert first.startswith("On top of lora-a: lora-b was trained beside lora-a (weights ")
    assert measured.startswith("What is measured is lora-b and lora-a in one answer, against the base")
    assert "lora-a alone had a loss of " in losses


def test_asked_without_the_other_it_is_served_and_the_log_says_so(tiny_base: Path, lora_a: Path, lora_b: Path) -> None:
    said: list[str] = []
    store = AdapterStore(tiny_base, load_tokenizer(tiny_base), roots=(lora_a.parent,), say=said.append)
    first, second = store.find("lora-a"), store.find("lora-b")
    assert [ancestor.name for ancestor in second.beside] == ["lora-a"]
    store.notice_alone([second, first])
    store.notice_alone([first])
    assert not any("warning" in line for line in said)
    store.notice_alone([second])
    store.notice_alone([second])
    (warning,) = [line for line in said if line.startswith("warning")]
    assert "adapter lora-b was trained beside lora-a (weights " in warning
    assert warning.endswith("Ask for them together: lora-a+lora-b")


# --- exact resumption ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [beside, pytest.param(going_on, marks=pytest.mark.long)])
def test_killed_and_resumed_ends_with_the_same_bytes(
    make: Callable[..., Any], tiny_base: Path, more_rows: Path, lora_a: Path, tmp_path: Path
) -> None:
    train(make(tiny_base, more_rows, tmp_path / "whole", lora_a))
    config = make(tiny_base, more_rows, tmp_path / "out", lora_a, resume_from_checkpoint="auto")
    assert kill_at(config, lambda output: (output / "checkpoint-2").is_dir()) == -signal.SIGKILL
    train(config)
    assert adapter_bytes(tmp_path / "out") == adapter_bytes(tmp_path / "whole")


def test_a_checkpoint_is_of_the_ancestors_weights(
    tiny_base: Path, more_rows: Path, lora_a: Path, lora_b: Path, tmp_path: Path
) -> None:
    output = tmp_path / "lora-b"
    shutil.copytree(lora_b, output)
    other = make_adapter(tiny_base, tmp_path / "other", template="chat", spread=0.1)
    with pytest.raises(BadCheckpoint, match=r"ancestor: .* then, .* now"):
        train(beside(tiny_base, more_rows, output, other, resume_from_checkpoint="auto"))
    with pytest.raises(BadCheckpoint, match=r"ancestor: .* then, null now"):
        plain = {"lora_target_modules": ["v_proj", "down_proj", "up_proj"], "learning_rate": 2e-2}
        train(settings(tiny_base, more_rows, output, resume_from_checkpoint="auto", **plain))


# --- generations --------------------------------------------------------------------------------------------------
def test_whoever_goes_on_with_a_second_adapter_has_the_first_beside_it(
    tiny_base: Path, more_rows: Path, lora_a: Path, lora_b: Path, tmp_path: Path
) -> None:
    lines = train(going_on(tiny_base, more_rows, tmp_path / "out", lora_b))
    card = card_of(tmp_path / "out")
    assert card.losses["validation_before"] == pytest.approx(card_of(lora_b).losses["validation_after"], abs=1e-5)
    assert card.on_top_of is not None
    assert card.on_top_of.line().startswith("going on with lora-b (weights ")
    assert ", itself beside lora-a (weights " in card.on_top_of.line()
    assert any("lora-a in effect and not changed" in line for line in lines)


def test_without_the_adapter_it_belongs_to_it_is_not_trained_further(
    tiny_base: Path, more_rows: Path, lora_b: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "elsewhere" / "lora-b"
    shutil.copytree(lora_b, alone)
    with pytest.raises(AlpacaError, match=r"E4001 .*lora-b was trained beside lora-a .* put its folder there"):
        make_plan(going_on(tiny_base, more_rows, tmp_path / "out", alone), lambda line: None)


# --- refused before work begins -----------------------------------------------------------------------------------
def theirs(folder: Path, base: Path, **kind: Any) -> Path:
    return make_adapter(base, folder / "theirs", **kind)


def edited(folder: Path, base: Path, **changes: Any) -> Path:
    made = theirs(folder, base)
    edit_config(made, **changes)
    return made


def of_another_base(folder: Path, base: Path) -> Path:
    made = make_adapter(make_base(folder / "other-base", seed=9), folder / "theirs", template="chat")
    return made


REFUSED: dict[str, tuple[Callable[[Path, Path], Any], dict[str, Any], str]] = {
    "nothing there": (lambda folder, base: folder / "lora-x", {}, "E4001 AdapterNotFound: no adapter '.*lora-x'"),
    "a base": (lambda folder, base: base, {}, "E4001 .*has no adapter_config.json: it is not an adapter folder"),
    "of another base": (of_another_base, {}, "E4003 WrongBase: .*was trained on .*; this base is"),
    "a strength": (lambda folder, base: f"{theirs(folder, base)}:0.7", {}, "E5001 .*without a strength"),
    "whole layers": (
        lambda folder, base: edited(folder, base, modules_to_save=["lm_head"]), {}, "E4002 .*modules_to_save .*Merge it"
    ),
    "another rank": (theirs, {"lora_r": 8}, "E5001 .*lora_r is 8, and theirs has 4: .*--lora_r out, .*--new_adapter"),
    "other layers": (
        theirs, {"lora_target_modules": ["o_proj"]}, "E5001 .*lora_target_modules is o_proj, .* has q_proj,v_proj"
    ),
    "dora asked for": (theirs, {"use_dora": True}, "E5001 .*use_dora is True, and theirs has False"),
    "beside dora": (
        lambda folder, base: theirs(folder, base, use_dora=True), {"new_adapter": True}, "E5001 .*is a DoRA adapter"
    ),
    "dora beside": (theirs, {"new_adapter": True, "use_dora": True}, "E5001 .*use_dora is True, and DoRA"),
    "another template beside": (
        lambda folder, base: theirs(folder, base, template="alpaca"),
        {"new_adapter": True, "prompt_template_name": "chat"},
        "E5001 .*prompt_template_name is chat, and theirs was trained with alpaca",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_refused_before_work_begins(fault: str, tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    make, changes, says = REFUSED[fault]
    given = {"adapter_path": str(make(tmp_path, tiny_base)), "lora_r": 16, "lora_alpha": 32} | changes
    with pytest.raises(AlpacaError, match="(?s)^" + says.removeprefix("^")) as caught:
        make_plan(settings(tiny_base, rows, tmp_path / "out", **given), lambda line: None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_head_is_not_trained(tiny_mha_base: Path, rows: Path, tmp_path: Path) -> None:
    head = make_adapter(tiny_mha_base, tmp_path / "head", target_modules=["lm_head", "q_proj"])
    with pytest.raises(AlpacaError, match=r"E4002 .*adapts the head .*Merge it"):
        make_plan(going_on(tiny_mha_base, rows, tmp_path / "out", head), lambda line: None)


@pytest.mark.parametrize("place", ["lora-x", "lora-x/deeper", "."])
def test_the_adapters_own_folder_is_no_place_for_the_new_one(
    place: str, tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    given = make_adapter(tiny_base, tmp_path / "lora-x")
    with pytest.raises(AlpacaError, match=r"E5001 .*output_dir is .*a folder of its own.*--output_dir lora-x-2"):
        make_plan(going_on(tiny_base, rows, tmp_path / place, given), lambda line: None)


def test_an_option_with_the_defaults_value_contradicts_too(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    given = make_adapter(tiny_base, tmp_path / "theirs")
    options = {"base_model": tiny_base, "data_path": rows, "output_dir": tmp_path / "out", "adapter_path": given}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    with pytest.raises(AlpacaError, match=r"E5001 .*lora_r is 16, and theirs has 4"):
        make_plan(read_settings([*arguments, "--lora_r=16"]), lambda line: None)
    assert make_plan(read_settings(arguments), lambda line: None).config.lora_r == 4


def test_a_second_adapter_needs_a_first(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(AlpacaError, match=r"E5001 .*new_adapter is True: .*--adapter_path"):
        settings(tiny_base, rows, tmp_path, new_adapter=True)


def test_rows_that_it_has_seen_are_not_held_out_without_a_word(
    tiny_base: Path, rows: Path, lora_a: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    make_plan(going_on(tiny_base, rows, tmp_path / "out", lora_a, seed=7), lines.append)
    assert any("it has seen some of those that are held out now" in line for line in lines)
    lines.clear()
    make_plan(going_on(tiny_base, rows, tmp_path / "out", lora_a), lines.append)
    assert not any("held out now" in line for line in lines)
