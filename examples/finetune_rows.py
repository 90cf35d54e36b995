"""Fine-tune all weights of a model on rows of token ids, with the loss on the answers only.

    python tuning/run_pretrain.py --model tiny                   # once: two to four minutes
    python tuning/run_tokenize.py --model tiny --dataset arith --task math --size 2000 \\
        --output checkpoints/rows.jsonl                          # once: the rows, seconds
    python examples/finetune_rows.py checkpoints/rows.jsonl

Writes checkpoints/finetune_rows/: model/ (for transformers), metrics.jsonl, result.json. Run again,
it resumes, or reports that it is done. torchrun --nproc_per_node 8 trains on 8 GPUs.

For rows of your own write {"input_ids": [...], "labels": [...]} per line, tokenized for the model
named below, with the label -100 for tokens without loss.
"""

from __future__ import annotations

import json
import sys

from tuning.engine import TrainingArgs, train


def main() -> None:
    """Fine-tune the embedded model; a hub id or a folder works in its place."""
    args = TrainingArgs(
        model_name_or_path="tiny",
        data_path=sys.argv[1] if len(sys.argv) > 1 else "checkpoints/rows.jsonl",
        output_dir=sys.argv[2] if len(sys.argv) > 2 else "checkpoints/finetune_rows",
        batch_size=32,  # rows per optimizer step, over all processes
        max_tokens_per_gpu=4096,  # per forward pass, limited by memory; rows are packed
        max_epochs=2,
        learning_rate=3e-3,
        warmup_steps=5,
        weight_decay=0.0,
        validation_split=0.05,  # fraction of the rows to hold out
        validation_every_steps=20,
        # With 7B parameters and more on GPUs: use_liger_kernels=True, gradient_checkpointing=True,
        # osft=True to keep what the model knows, save_dtype="bfloat16".
    )
    trained = train(args)
    lines = (trained.directory / "metrics.jsonl").read_text().splitlines()
    losses = [line["val_loss"] for line in map(json.loads, lines) if "val_loss" in line]
    print(f"validation loss: {' -> '.join(f'{loss:.3f}' for loss in losses)}")
    print(f"the model is in {trained.model}")


if __name__ == "__main__":
    # Turns what train() raises into one line and an exit code; call main() to see tracebacks.
    from tuning.entry import run

    run(main)
