"""On PYTHONPATH, a process does not find the kernels of vLLM's build for CPUs, which unsloth loads
where they are: they are made for AVX-512, and end a process on a processor that has none. vLLM
itself takes others there.
"""

import sys
from typing import Any


class _Hidden:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "vllm._C":
            raise ModuleNotFoundError("hidden from unsloth", name=name)


sys.meta_path.insert(0, _Hidden())  # type: ignore[arg-type]
