"""Three shapes of base that people have, from rows, or a GGUF file, to two turns over HTTP.

The bases are scripted: they say their answer, end the turn as their chat template does, and would go on for ever. So an
answer that is cut anywhere else shows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from alpaca.cogserver.server import Server
from tests.conftest import ROOT
from tests.convert.test_gguf import PieceKind, Q, Writer
from tests.prompts.chat_templates import SHAPES, Shape
from tests.server.over_http import Start, post
from tests.training.runs import command, environment, write_rows

pytestmark = [pytest.mark.server, pytest.mark.long]
GREEDY = {"temperature": 0, "max_tokens": 24}
SAID = ("h", "a", "y")
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Served:
    """A base with an adapter that was trained on it, behind Cog's server; what finetune.py printed."""

    base: Path
    server: Server
    printed: str

    def ask(self, messages: Messages, **inputs: Any) -> dict[str, Any]:
        answer: dict[str, Any] = post(self.server, {"messages": messages, **GREEDY, **inputs}).json()
        return answer

    def prompt_length(self, messages: Messages) -> int:
        """In tokens, as transformers itself renders and counts it."""
        tokenizer = AutoTokenizer.from_pretrained(self.base)
        return len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    def two_turns(self) -> list[str]:
        """Two answers, each of which ended by itself after the prompt that the chat template makes."""
        messages: Messages = []
        said = []
        for question in ("What do they eat?", "And then?"):
            messages.append({"role": "user", "content": question})
            answer = self.ask(messages)
            assert answer["status"] == "succeeded", answer
            assert answer["metrics"]["finish_reason"] == "stop"
            assert answer["metrics"]["input_token_count"] == self.prompt_length(messages)
            said.append("".join(answer["output"]))
            messages.append({"role": "assistant", "content": said[-1]})
        return said


def serve(base: Path, start_server: Start, folder: Path, *answers: str) -> Served:
    """Train an adapter on conversations of two turns with these answers, and serve it."""
    talk = []
    for answer in answers:
        talk += [{"role": "user", "content": "Eat?"}, {"role": "assistant", "content": answer}]
    rows = write_rows(folder / "rows.jsonl", [{"messages": talk}] * 6)
    done = command(
        "--base_model", base, "--data_path", rows, "--output_dir", folder / "lora", "--quantization", "fp32",
        "--num_epochs", 2, "--batch_size", 4, "--learning_rate", 1e-5, "--val_set_size", 0, "--lora_r", 4,
        "--replay_ratio", 0, "--report_budget", 0,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return Served(base, start_server(base, COG_WEIGHTS=str(folder / "lora")), done.stdout)


def write_gguf(path: Path, base: Path, shape: Shape) -> None:
    """The base in one file, as llama.cpp's converter writes it: its metadata names EOS, the turn's end, and the chat
    template."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    vocab = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    special = set(tokenizer.all_special_tokens) | set(shape.markers)
    writer = Writer(path, model)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(vocab)
    writer.add_token_types([PieceKind.CONTROL if token in special else PieceKind.NORMAL for token in vocab])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_eot_token_id(tokenizer.convert_tokens_to_ids(shape.turn_end))
    writer.add_chat_template(shape.jinja)
    writer.add_model(model, Q.F16)
    writer.finish()


def test_qwen3_thinks_answers_and_stops_in_every_turn(tmp_path: Path, start_server: Start) -> None:
    """Earlier answers lose their thoughts, so each answer is trained in an example of its own."""
    shape = SHAPES["Qwen3"]
    chain = ("Ċ", "<think>", "x", "</think>", *SAID, "<|im_end|>", "z", "z")
    base = shape.make_scripted_base(tmp_path / "base", *chain)
    served = serve(base, start_server, tmp_path, "<think>\nwhy\n</think>\n\nhay", "<think>\nso\n</think>\n\ngrass")
    assert "6 conversations made into one example for each answer" in served.printed
    assert served.two_turns() == ["<think>x</think>hay"] * 2


def test_llama_3_from_a_gguf_file_stops_at_its_turn_end(tmp_path: Path, start_server: Start) -> None:
    """Its EOS ends the text, <|eot_id|> the turn: the template says so, and the file does."""
    shape = SHAPES["Llama 3 base"]
    path = tmp_path / "Llama-3-Tiny.F16.gguf"
    write_gguf(path, shape.make_scripted_base(tmp_path / "whole", "Ċ", *SAID, "<|eot_id|>", "z", "z"), shape)
    converter = [sys.executable, "-m", "alpaca.convert", "--input_dir", str(path), "--output_dir", str(tmp_path)]
    done = subprocess.run(converter, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "answers end at <|eot_id|>" in done.stdout
    base = tmp_path / "llama-3-tiny"
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert (tokenizer.eos_token, tokenizer.chat_template) == (shape.eos, shape.jinja)
    served = serve(base, start_server, tmp_path, "hay", "grass")
    assert served.two_turns() == ["hay"] * 2


def test_mistral_stops_at_eos_and_refuses_a_system_text(tmp_path: Path, start_server: Start) -> None:
    """Its template knows no system role: whoever sends one is told so, and nobody else notices."""
    base = SHAPES["Mistral"].make_scripted_base(tmp_path / "base", "[/INST]", *SAID, "</s>", "z", "z")
    served = serve(base, start_server, tmp_path, "hay", "grass")
    refused = served.ask([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Eat?"}])
    assert refused["status"] == "failed"
    assert "E1004 BadMessages: the base's chat template refuses this conversation" in refused["error"]
    assert served.two_turns() == ["hay"] * 2
