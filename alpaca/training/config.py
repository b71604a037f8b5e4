"""Every setting of a fine-tune, in one dataclass. docs/options.md says why the defaults differ from alpaca-lora's."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

from alpaca.data.columns import parse_columns
from alpaca.errors import BadSetting
from alpaca.paths import as_written

REPORTERS = ("none", "tensorboard", "wandb")
FULL_OUTPUT = "alpaca-full"  # where a whole model goes unless told otherwise: lora-alpaca is an adapter's name


def _option(
    default: Any,
    help: str,
    *,
    within: tuple[float, float] | None = None,
    choices: tuple[str, ...] = (),
    path: bool = False,
) -> Any:
    """A setting with what `--help` says of it, and what it may be: a number `within` both ends, one of `choices`, or
    what may be a `path`, in which ~ means the home."""
    return field(default=default, metadata={"help": help, "within": within, "choices": choices, "path": path})


@dataclass(kw_only=True)
class FinetuneConfig:
    """The settings, checked when it is made. Raises BadSetting naming field, value and limit."""

    base_model: str = _option(
        "", "folder, name under weights/, or hub id of the base; empty: the only one in weights/", path=True
    )
    data_path: str = _option(
        "data/alpacas.jsonl", "training rows: .json, .jsonl, .csv, .parquet, a plain .txt or a hub data set", path=True
    )
    output_dir: str = _option("lora-alpaca", "where the adapter folder goes", path=True)
    adapter_path: str = _option(
        "", "an adapter to go on with: a folder, an archive or an https URL; it stays as it is", path=True
    )
    new_adapter: bool = _option(False, "train a second adapter beside that of adapter_path, which stays in effect")

    num_epochs: float = _option(3.0, "times each row is seen; fractions are allowed", within=(0.001, 10_000))
    batch_size: int = _option(16, "examples in an optimizer step, over all processes", within=(1, 65_536))
    micro_batch_size: int | None = _option(
        None, "the most examples in a micro-batch; none: the token budget decides", within=(1, 65_536)
    )
    micro_batch_tokens: int | None = _option(
        None, "token budget of a micro-batch; none: chosen for the device", within=(16, 4_194_304)
    )
    learning_rate: float | None = _option(
        None, "peak learning rate; none: chosen from the base's width", within=(1e-9, 1)
    )
    warmup_ratio: float = _option(0.05, "share of the steps over which the learning rate rises", within=(0, 1))
    cutoff_len: int = _option(1024, "tokens an example may have; longer responses are cut", within=(8, 1_048_576))
    val_set_size: float | None = _option(
        None,
        "rows held out: a count, or a fraction below 1; none: a tenth, at most 500 rows; 0: no validation",
        within=(0, 10**9),
    )
    val_data_path: str = _option(
        "", "a second validation file, never trained on; its loss is reported apart", path=True
    )
    train_on_inputs: bool = _option(False, "train on the prompt's tokens too, not on responses only")
    prompt_template_name: str = _option(
        "auto",
        "a template of templates/, a .json file, chat, or auto (chat where the base has a chat template)",
        path=True,
    )
    columns: str = _option("", "what columns of other names are: prompt=instruction,completion=output")
    skip_bad_rows: bool = _option(False, "leave out bad rows and count them, instead of refusing the file")

    replay_path: str = _option(
        "data/general.jsonl", "general rows that are mixed in, so that less is forgotten", path=True
    )
    replay_ratio: float | None = _option(
        None,
        "share of general rows among the rows of an epoch; none: 0.1 where the base has a chat template, else 0",
        within=(0, 0.9),
    )
    replay_self: bool | None = _option(
        None,
        "let the base answer the general prompts itself, and replay its own answers; none: if it has a chat template",
    )
    replay_kl: float | None = _option(
        None,
        "weight of the divergence (KL) from the base on replayed answers, in place of their loss; none: "
        "10 where the base has a chat template, else 0",
        within=(0, 1000),
    )

    finetuning_type: str = _option(
        "lora", "what is trained: an adapter of low rank, or all weights", choices=("lora", "full")
    )
    lora_r: int = _option(16, "rank of the adapter", within=(1, 1024))
    lora_alpha: float = _option(32, "the adapter is scaled by lora_alpha / lora_r", within=(0.001, 1_000_000))
    lora_dropout: float = _option(
        0.0, "dropout before the adapter; above 0 training is slower and takes more memory", within=(0, 0.99)
    )
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"],
        metadata={"help": "layers to adapt: all-linear, or names: q_proj,v_proj"},
    )
    use_rslora: bool = _option(False, "scale by lora_alpha / sqrt(lora_r): steadier at high ranks")
    use_dora: bool = _option(False, "train magnitude and direction apart; slower")

    quantization: str = _option("auto", "how the base is held", choices=("auto", "bf16", "fp32", "int8", "nf4"))
    gradient_checkpointing: bool = _option(False, "compute activations again instead of keeping them: less memory")
    eval_steps: int | None = _option(
        None, "steps between evaluations and checkpoints; none: an eighth of the run", within=(1, 10**9)
    )
    early_stopping_patience: int | None = _option(
        None, "stop after this many evaluations without a better loss", within=(1, 10**6)
    )
    resume_from_checkpoint: str = _option(
        "", "a checkpoint folder, or auto: the last one in output_dir, if any", path=True
    )
    report_to: str = _option("none", "where losses are sent as well", choices=REPORTERS)
    report_budget: float = _option(
        0.05,
        "time for the report, as a share of the training's, at least a minute; 0: no report",
        within=(0, 1),
    )
    seed: int = _option(42, "the same seed, data and settings give the same adapter", within=(0, 2**32 - 1))
    dry_run: bool = _option(False, "print what would be trained, how long it would take and with what memory; stop")

    wandb_project: str = _option("", "Weights & Biases project; sets report_to wandb")
    wandb_run_name: str = _option("", "name of the run in Weights & Biases")
    wandb_watch: str = _option("", "as alpaca-lora has it: false, gradients or all")
    wandb_log_model: str = _option("", "as alpaca-lora has it: false or true")
    add_eos_token: bool = _option(True, "accepted for old command lines: EOS always ends a trained response")
    group_by_length: bool = _option(False, "accepted for old command lines: packing leaves no padding to save")

    given: InitVar[frozenset[str]] = frozenset()

    def __post_init__(self, given: frozenset[str]) -> None:
        self._given = given
        if self.wandb_project and self.report_to == "none":
            self.report_to = "wandb"
        self._check_values()
        if not self.lora_target_modules or not all(re.fullmatch(r"[\w.-]+", m) for m in self.lora_target_modules):
            self._refuse("lora_target_modules", "all-linear, or module names such as q_proj,v_proj")
        if self.finetuning_type == "full":
            self._check_full()
        if self.early_stopping_patience and self.val_set_size == 0:
            self._refuse("early_stopping_patience", "it needs validation rows, and val_set_size is 0")
        parse_columns(self.columns)
        if not self.output_dir.strip():
            self._refuse("output_dir", "name a folder")
        if self.new_adapter and not self.adapter_path.strip():
            self._refuse("new_adapter", "it goes beside another adapter: name that one with --adapter_path")
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            self.micro_batch_size = self.batch_size

    def _check_values(self) -> None:
        for setting in dataclasses.fields(self):
            value, within, choices = getattr(self, setting.name), *map(setting.metadata.get, ("within", "choices"))
            if setting.metadata.get("path") and value.startswith("~"):
                setattr(self, setting.name, str(as_written(value)))
            if within and value is not None and not within[0] <= value <= within[1]:  # also refuses nan
                self._refuse(setting.name, f"from {number(within[0])} to {number(within[1])}")
            if choices and value not in choices:
                self._refuse(setting.name, f"choose {listed(choices)}")

    def _check_full(self) -> None:
        """Refuse what means nothing where all weights are trained, and give the result a folder of its own name."""
        for setting in dataclasses.fields(self):
            of_lora = setting.name.startswith("lora_") or setting.name in ("use_rslora", "use_dora")
            default = setting.default if setting.default_factory is dataclasses.MISSING else setting.default_factory()
            if of_lora and getattr(self, setting.name) != default:
                self._refuse(setting.name, "finetuning_type full trains all weights and no adapter: leave it out")
        if self.adapter_path:
            self._refuse("adapter_path", "finetuning_type full trains all weights, no adapter: leave one of them out")
        if self.quantization in ("int8", "nf4"):
            self._refuse("quantization", "finetuning_type full trains all weights, in bf16 or fp32")
        if self.replay_kl:
            self._refuse(
                "replay_kl",
                "with finetuning_type full no base is left to teach: it would take a second copy of the weights. "
                "Leave it out, and general rows are trained on like the data",
            )
        if self.output_dir == FinetuneConfig.output_dir:
            self.output_dir = FULL_OUTPUT

    def asks_for(self, name: str) -> bool:
        """Whether someone wrote a setting down, and does not leave it to the run: known of what `from_sourced` made,
        also where it is the default's value; elsewhere by the value."""
        return name in self._given or getattr(self, name) != getattr(FinetuneConfig(), name)

    def _refuse(self, name: str, wanted: str) -> None:
        raise BadSetting(f"{name} is {getattr(self, name)!r}: {wanted}")

    @classmethod
    def from_sourced(cls, values: dict[str, tuple[Any, str]]) -> FinetuneConfig:
        """Make a configuration from loosely typed values, each with where it came from (a file, an option).

        Raises BadSetting for an unknown name (with the nearest known one) or a value of another kind.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        clean = {}
        for name, (value, source) in values.items():
            if name not in fields:
                near = difflib.get_close_matches(str(name), fields, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise BadSetting(f"{source}: there is no setting '{name}'{hint}")
            clean[name] = convert(name, str(fields[name].type), value, source)
        return cls(**clean, given=frozenset(clean))

    @staticmethod
    def from_yaml(path: Path) -> dict[str, Any]:
        """Read the settings of a YAML file as a dictionary. Raises BadSetting for a file that is no mapping."""
        import yaml

        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise BadSetting(f"{path} can't be read as YAML: {error}") from None
        if not isinstance(values, dict):
            raise BadSetting(f"{path} must hold settings as 'name: value' lines, not a {type(values).__name__}")
        return values


def number(value: float) -> str:
    """A limit as people write it: 65,536 and 0.001."""
    return f"{value:,}" if value == int(value) else f"{value:g}"


def listed(choices: Sequence[str]) -> str:
    """a, b or c."""
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


def convert(name: str, kind: str, value: Any, source: str) -> Any:
    """`value` as the type that field `name` declares (`kind`, as written in the class)."""
    text = value.strip() if isinstance(value, str) else value
    if "None" in kind and text in (None, "", "none", "None"):
        return None
    wanted = kind.replace(" | None", "")
    try:
        if wanted == "bool":
            return _as_bool(text)
        if wanted == "list[str]":
            return _as_list(text)
        if wanted == "str":
            return _as_text(text)
        if isinstance(text, bool):
            raise ValueError
        number = float(text)
        if wanted == "int":
            if number != int(number):
                raise ValueError
            return int(number)
        return number
    except (ValueError, TypeError, OverflowError):
        kinds = {"bool": "true or false", "int": "a whole number", "float": "a number", "list[str]": "a list of names"}
        raise BadSetting(f"{source}: {name} is {value!r}, not {kinds.get(wanted, 'text')}") from None


def _as_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    named = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False, "on": True, "off": False}
    text = str(value).lower()
    if text not in named:
        raise ValueError
    return named[text]


def _as_list(value: Any) -> list[str]:
    """A list, or text in any of the spellings in use: a,b — [a,b] — ['a', 'b'] — "[a b]"."""
    if isinstance(value, list | tuple):
        return [str(item) for item in value]
    if not isinstance(value, str):
        raise ValueError
    return [part for part in re.split(r"[\s,]+", value.strip("[]()").replace("'", "").replace('"', "")) if part]


def _as_text(value: Any) -> str:
    if isinstance(value, bool):  # --resume_from_checkpoint without a value, wandb_watch: false
        return "true" if value else ""
    if isinstance(value, str | int | float):
        return str(value)
    if value is None:
        return ""
    raise ValueError
