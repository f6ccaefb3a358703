"""Measurements that a reader can repeat: this model beside the authors' release and beside its peers.

Needs torch, numpy, Pillow and safetensors only, so that it runs as `python -m orchestrator.bench` on a GPU machine
that has neither Ray nor pydantic.
"""
