"""The service that restores photographs over HTTP.

    http_server     uvicorn in a thread; drains at its end
    service         routes: authentication, admission control, body, image header, backend, response
    webhook         verifies MLflow's deliveries, which say that an alias moved
    replica         in its own process: decode, batch by size, restore, encode
    active_model    which model restores, the one before it, and the last rejected version
    alias_watcher   activates the version that the registry's alias points to
    monitor         the loop that polls the alias, or looks at it when the webhook says so
    front_end       puts service, watcher and monitor together

`serve` runs a front end for `mirage serve`, `ray_app` one behind Ray Serve's HTTP proxies; `app` is its import path.
"""
