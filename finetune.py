"""Fine-tune from the shell: python finetune.py --data_path rows.jsonl. Without arguments: the shipped set and base."""

from __future__ import annotations

from alpaca.errors import end_as_interrupted, exit_on_error


@exit_on_error
def main() -> None:
    end_as_interrupted()
    from alpaca.training.cli import read_settings

    config = read_settings()
    from alpaca.training.run import finetune

    finetune(config)


if __name__ == "__main__":
    main()
