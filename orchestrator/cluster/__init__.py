"""Connect to a Ray cluster, read its capacity, submit to it, and run a local one.

Other code that imports Ray is in modules named `ray_*`.
"""
