"""A base from the hub, with the hub's own client: what is fetched, what is refused, and how a gated one opens."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.base.hub_stand_in import COMMIT, Hub, stand_in
from tests.conftest import ROOT, make_tokenizer

ID = "alpacas/tiny"
TOKEN = "hf_secretsecretsecret"
RESOLVE = "import sys; from alpaca.base.find import resolve_base; print(resolve_base(sys.argv[1]))"
FINETUNE = ["finetune.py", "--dry_run", "--data_path", "data/alpacas.jsonl", "--base_model"]
SERVE = "from predict import Runner; runner = Runner(); runner.setup(); print('ready'); runner.engine.close()"


@pytest.fixture
def repository(tiny_base: Path, tmp_path: Path) -> Path:
    """A release as they are: the weights once more in the original layout, other formats, folders of notes."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "repository"))
    for name in ("consolidated.safetensors", "pytorch_model.bin", "original/params.json", "onnx/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not fetched")
    return folder


def ask(hub: Hub, home: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the hub's client pointed at the stand-in."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and k != "BASE_MODEL"}
    variables |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    variables |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=variables | environment, capture_output=True, text=True, timeout=300
    )


def resolve(hub: Hub, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return ask(hub, home, "-c", RESOLVE, hub.hub_id, **environment)


def test_only_what_transformers_loads_is_fetched_and_once(repository: Path, tmp_path: Path) -> None:
    with stand_in(ID, repository) as hub:
        first = resolve(hub, tmp_path / "home")
        assert first.returncode == 0, first.stderr
        folder = Path(first.stdout.strip())
        assert folder.name == COMMIT
        assert sorted(hub.served) == sorted(path.name for path in folder.iterdir())
        assert "model.safetensors" in hub.served
        assert not {"consolidated.safetensors", "pytorch_model.bin", "params.json"} & set(hub.served)
        hub.served.clear()
        assert resolve(hub, tmp_path / "home").stdout == first.stdout
        assert hub.served == []
    assert resolve(hub, tmp_path / "home").stdout == first.stdout  # the hub is gone, the cache is not
    assert resolve(hub, tmp_path / "home", HF_HUB_OFFLINE="1").stdout == first.stdout


def test_of_a_sharded_base_the_shards_that_the_index_names(tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    AutoModelForCausalLM.from_pretrained(tiny_base).save_pretrained(folder, max_shard_size="100KB")
    make_tokenizer().save_pretrained(folder)
    shards = {path.name for path in folder.glob("*.safetensors")}
    (folder / "model-00009-of-00009.safetensors").write_bytes(b"left over")
    with stand_in(ID, folder) as hub:
        done = resolve(hub, tmp_path / "home")
        assert done.returncode == 0 and "No files matched" not in done.stderr, done.stderr
        assert {name for name in hub.served if name.endswith(".safetensors")} == shards and len(shards) > 2


def test_a_quantised_base_is_refused_before_its_weights_are_fetched(repository: Path, tmp_path: Path) -> None:
    config = repository / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "awq"}}))
    with stand_in(ID, repository) as hub:
        refused = resolve(hub, tmp_path / "home")
    assert f"E3003 BadBase: {ID} on the hub: " in refused.stderr and "quantised already (AWQ)" in refused.stderr
    assert "config.json" in hub.served and "model.safetensors" not in hub.served


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("", f"accept its licence at https://huggingface.co/{ID}, then set HF_TOKEN to a token of that account"),
        ("hf_ofanotheraccount", "the account of the token in use may not read it: accept its licence at"),
    ],
)
def test_a_gated_base_says_what_to_do_and_never_the_token(
    repository: Path, tmp_path: Path, token: str, said: str
) -> None:
    with stand_in(ID, repository, TOKEN) as hub:
        refused = resolve(hub, tmp_path / "home", **({"HF_TOKEN": token} if token else {}))
    assert f"E3001 BaseNotFound: '{ID}' is a gated base" in refused.stderr and said in refused.stderr
    assert hub.served == []
    assert not token or token not in refused.stderr + refused.stdout


def test_a_repository_that_is_not_there_or_not_shown(repository: Path, tmp_path: Path) -> None:
    with stand_in(ID, repository) as hub:
        refused = ask(hub, tmp_path / "home", "-c", RESOLVE, "alpacas/elsewhere")
    assert "E3001 BaseNotFound: 'alpacas/elsewhere' is no local folder, and the hub has no such base" in refused.stderr
    assert "a private base needs a token in HF_TOKEN" in refused.stderr


def test_with_the_token_a_gated_base_is_trained_on(repository: Path, tmp_path: Path) -> None:
    with stand_in(ID, repository, TOKEN) as hub:
        refused = ask(hub, tmp_path / "home", *FINETUNE, ID)
        assert refused.returncode == 2 and "E3001" in refused.stderr and "Traceback" not in refused.stderr
        done = ask(hub, tmp_path / "home", *FINETUNE, ID, HF_TOKEN=TOKEN)
    assert done.returncode == 0 and "dry run: nothing was trained" in done.stdout, done.stderr
    assert TOKEN not in done.stdout + done.stderr


def test_with_the_token_a_gated_base_is_served(repository: Path, tmp_path: Path) -> None:
    with stand_in(ID, repository, TOKEN) as hub:
        done = ask(hub, tmp_path / "home", "-c", SERVE, HF_TOKEN=TOKEN, BASE_MODEL=ID, PRECISION="fp32", COG_WEIGHTS="")
    assert "ready" in done.stdout.splitlines(), done.stderr
    assert TOKEN not in done.stdout + done.stderr
