"""The service that restores photographs over HTTP, without Ray: what a request meets, in order.

    door       uvicorn in a thread of its own; drains
    app        routes; token → room → bytes → pixels → backend → answer
    restorer   in each replica: decode, batch by size, restore, encode
    shelf      which model answers, and which version was refused
    follow     moves the shelf when the registry's alias moves

`orchestrator.cluster.serving` puts the restorer into Ray Serve replicas.
"""
