"""Cog's training: typed inputs become a fine-tune, its adapter folder becomes an archive of LoRA weights.

Cog reads the signature from this source without running it: plain names and literals, each string in one piece.
"""
# ruff: noqa: B008, UP045

from typing import Optional

from cog import BaseModel, Input, Path, Secret

from alpaca.cogserver.webhooks import unfence

unfence()


class TrainingOutput(BaseModel):
    """A zip of the adapter folder. Given to the predictor as COG_WEIGHTS, it is served."""

    weights: Path


async def train(
    train_data: Path = Input(description="Rows to train on: .json, .jsonl, .csv, .parquet or .txt, by URL or upload."),
    base_model: str = Input(
        default="", description="A base in weights/, or a hub id that the server allows; empty: the only one there is."
    ),
    num_epochs: float = Input(default=3.0, ge=0.001, le=10000, description="Times each row is seen."),
    batch_size: int = Input(default=16, ge=1, le=65536, description="Examples in an optimizer step."),
    micro_batch_size: Optional[int] = Input(
        default=None, ge=1, le=65536, description="The most examples at a time; without it, as many as fit."
    ),
    micro_batch_tokens: Optional[int] = Input(
        default=None, ge=16, le=4194304, description="Tokens at a time; without it, chosen for the device."
    ),
    learning_rate: Optional[float] = Input(
        default=None, ge=0.000000001, le=1, description="Peak learning rate; without it, chosen from the base's width."
    ),
    warmup_ratio: float = Input(default=0.05, ge=0, le=1, description="Share of the steps that warm up."),
    cutoff_len: int = Input(default=1024, ge=8, le=1048576, description="Tokens an example may have."),
    val_set_size: Optional[float] = Input(
        default=None,
        ge=0,
        le=1000000000,
        description="Rows held out, a count or a fraction; without it, a tenth, at most 500.",
    ),
    train_on_inputs: bool = Input(default=False, description="Train on the prompts too, not on the responses only."),
    train_template: str = Input(
        default="auto", description="A prompt template's name, chat, or auto: chat where the base has a chat template."
    ),
    columns: str = Input(
        default="", description="Where columns have other names: prompt=instruction,completion=output."
    ),
    skip_bad_rows: bool = Input(default=False, description="Leave out rows that can't be used, and count them."),
    replay_ratio: Optional[float] = Input(
        default=None,
        ge=0,
        le=0.9,
        description="Share of general rows; without it, 0.1 where the base has a chat template.",
    ),
    replay_self: Optional[bool] = Input(
        default=None,
        description="Let the base answer the general prompts itself first; without it, chosen by the base.",
    ),
    replay_kl: Optional[float] = Input(
        default=None,
        ge=0,
        le=1000,
        description="Weight of the divergence from the base on general rows; without it, chosen by the base.",
    ),
    lora_r: int = Input(default=16, ge=1, le=1024, description="Rank of the adapter."),
    lora_alpha: float = Input(default=32, ge=0.001, le=1000000, description="The adapter's scale is this over lora_r."),
    lora_dropout: float = Input(default=0.0, ge=0, le=0.99, description="Dropout before the adapter."),
    lora_target_modules: str = Input(default="all-linear", description="all-linear, or names: q_proj,v_proj"),
    use_rslora: bool = Input(default=False, description="Scale by lora_alpha over the square root of lora_r."),
    use_dora: bool = Input(default=False, description="Train magnitude and direction apart; slower."),
    new_adapter: bool = Input(
        default=False, description="With adapter: train a second one beside it, to be asked together with it."
    ),
    quantization: str = Input(
        default="auto", choices=["auto", "bf16", "fp32", "int8", "nf4"], description="How the base is held in memory."
    ),
    gradient_checkpointing: bool = Input(default=False, description="Less memory for a third more time."),
    early_stopping_patience: Optional[int] = Input(
        default=None, ge=1, le=1000000, description="Stop after this many evaluations without a better validation loss."
    ),
    report_budget: float = Input(
        default=0.05, ge=0, le=1, description="Time for the report, as a share of the training's; 0 leaves it out."
    ),
    seed: int = Input(default=42, ge=0, le=4294967295, description="The same seed and data give the same adapter."),
    validation_data: Optional[Path] = Input(
        default=None, description="More rows to validate on, by URL or upload; their loss is reported apart."
    ),
    adapter: Optional[str] = Input(
        default=None,
        description="An adapter to go on with: the https URL of an archive, or the archive as a data: URL.",
    ),
    hf_token: Optional[Secret] = Input(
        default=None, description="A token of the hub, for a base that is gated there. It is not kept."
    ),
    num_train_epochs: Optional[float] = Input(
        default=None, ge=0.001, le=10000, deprecated=True, description="Another name of num_epochs."
    ),
    train_batch_size: Optional[int] = Input(
        default=None, ge=1, le=65536, deprecated=True, description="Another name of batch_size."
    ),
    lora_rank: Optional[int] = Input(
        default=None, ge=1, le=1024, deprecated=True, description="Another name of lora_r."
    ),
    num_validation_samples: Optional[int] = Input(
        default=None, ge=0, le=1000000000, deprecated=True, description="Another name of val_set_size, as a count."
    ),
    validation_prompt: Optional[str] = Input(
        default=None, deprecated=True, description="Without effect: the report asks questions of its own."
    ),
) -> TrainingOutput:
    """Fine-tune and return the adapter as an archive, without optimizer state.

    Asynchronous because predict.py takes several at once: Cog then wants that of both.
    """
    settings = dict(locals())
    from alpaca.training.job_process import train_apart

    return TrainingOutput(weights=Path(await train_apart(settings)))
