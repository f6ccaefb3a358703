"""Sweeps: a search over keys of a training job, without Ray.

    config       what a sweep's file says           space        knobs → values → a trial's job
    constraints  what a candidate may cost          search       which values are tried next, and why
    halving      which trials stop early            book         every event, written once
    table        the events as rows                 controller   suggests, starts, listens, stops, records
    trial        one row: a run of its own          running      a sweep from its job to its end
    planning     what it will do, beforehand        report       what came out of it, with `pictures`

`orchestrator.sweeps.ray_trials` runs the trials on Ray Train.
"""
