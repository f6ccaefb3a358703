"""Sweeps: a search over keys of a training job, run by Ray Tune.

job            a sweep from its job to its end       plan           what it will do, beforehand
ray_tuner      the Tuner and its callbacks           ray_search     searchers, constraints
ray_scheduler  schedulers                            ray_trial      one trial's process
record         table and event log, repeated by `ray_replay` after an interruption
event_log      every event, written once             trial_table    events -> rows
report         what it found, with `plots` and `importance`         best_trial     its job, exported or continued
"""
