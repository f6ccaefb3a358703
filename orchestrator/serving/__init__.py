"""The service that restores photographs over HTTP.

    http_server     uvicorn in a thread; drains at its end
    service         routes: authentication, admission control, body, image header, backend, response
    replica         in its own process: decode, batch by size, restore, encode
    active_model    which model restores, the one before it, and the last rejected version
    alias_watcher   activates the version that the registry's alias points to

`serve` puts them together for `mirage serve`; `ray_app` builds a Ray Serve application from the same parts.
"""
