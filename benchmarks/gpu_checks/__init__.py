"""The steps of benchmarks/gpu_smoke.py, and what carries them out."""
