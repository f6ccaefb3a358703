"""Benchmarks of this model, the authors' release and its peers that a reader can repeat.

`model` and `train-parity` need torch, numpy, Pillow and safetensors only, so that `python -m orchestrator.bench` runs
them on a GPU machine without Ray and pydantic.
"""
