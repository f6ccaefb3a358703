"""The service that restores photographs over HTTP, without Ray: what a request meets, in order.

    door       uvicorn in a thread of its own; drains
    app        routes; token → room → bytes → pixels → backend → answer
    replica    in a process of its own: decode, batch by size, restore, encode
    shelf      which model answers, and which version was refused
    follow     moves the shelf when the registry's alias moves

`serve` puts them together. `orchestrator.serving.ray_serve` runs replicas on Ray Serve.
"""
