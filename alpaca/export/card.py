"""README.md of an export: what it is, where it comes from, how it was checked, how it is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alpaca.export.leaving import Leaving
from alpaca.export.licence import licence_of
from alpaca.export.proof import Proof

FILE = "README.md"


def write_card(models: Sequence[Leaving], proofs: Sequence[Proof], folder: Path) -> None:
    """Write the model card, with the fields at its head that hubs read."""
    first = models[0]
    licence = licence_of(first.base)
    head = ["---", f"license: {licence or 'other'}", f"base_model: {first.base.name}", "tags:", "- alpaca", "---", ""]
    lines = [*head, f"# {', '.join(model.name for model in models)}", ""]
    lines += [f"Made of the base {first.base.name} (fingerprint {first.fingerprint})"]
    lines += [""] + [line for model in models for line in _origin(model)]
    if licence is None:
        lines += ["", "The base's folder names no licence: look it up where the base comes from, and name it above."]
    lines += ["", "## How it is used", "", *_use(proofs[0])]
    lines += ["", "## How it was checked", "", *_checks(proofs)]
    (folder / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _origin(model: Leaving) -> list[str]:
    """One entry for each adapter: its strength, data and losses."""
    lines = []
    for used in model.strengths:
        lines.append(f"- adapter {used.name}, strength {used.scale:g}, template {model.template.name}")
    card = model.card
    if card is not None:
        source, digest = card.data.get("source"), card.data.get("sha256")
        lines.append(f"- trained on {source} (sha256 {digest}), {card.created}")
        lines += [f"- {name.replace('_', ' ')}: {value:.4f}" for name, value in _losses(card.losses)]
    return lines


def _losses(losses: dict[str, Any]) -> list[tuple[str, float]]:
    return [(name, float(value)) for name, value in losses.items() if isinstance(value, int | float)]


def _use(proof: Proof) -> list[str]:
    model = proof.files.get("model", proof.files.get("adapter", ""))
    name = proof.name
    return {
        "merged": [
            "```python",
            "from transformers import pipeline",
            'pipeline("text-generation", "path/of/this/folder")([{"role": "user", "content": "…"}])',
            "```",
        ],
        "gguf": ["```bash", f"llama-server -m {model} --jinja", f"ollama create {name} -f Modelfile", "```"],
        "gguf-lora": ["```bash", f"llama-server -m THE-BASE.gguf --lora {model} --jinja", "```",
                      f"The template is {proof.template}; give it with --chat-template-file if the base's is another."],
        "meta": ["`consolidated.00.pth` and `params.json` are what Meta's own code reads."],
        "vllm": ["```bash", "./serve.sh --port 8000", "```", f'Clients ask for the model "{name}".'],
    }[proof.what]  # fmt: skip


def _checks(proofs: Sequence[Proof]) -> list[str]:
    lines = [
        f"Before it was written, {len(proofs[0].answers)} questions ({proofs[0].questions_from}) were answered "
        f"greedily by the model it was made of, in {proofs[0].here}. Then what was written was asked the same:",
        "",
        "| model | asked in | equal tokens | near ties | log-probabilities differ by | loss, before, after | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for proof in proofs:
        for found in proof.checks:
            mean, most = found["logprob_mean"], found["logprob_largest"]
            differ = "–" if mean is None else f"{mean:.4f}, at most {most:.4f}"
            loss = "–" if found["loss_there"] is None else f"{found['loss_here']:.4f}, {found['loss_there']:.4f}"
            equal = f"{found['equal']} of {found['compared']} ({100 * found['share']:.2f} %)"
            cells = (proof.name, found["tool"], equal, found["ties"], differ, loss, found["verdict"])
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, "", "`python -m alpaca.export check FOLDER` asks again; `--url` asks a server."]
