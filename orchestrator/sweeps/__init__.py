"""Sweeps: a search over keys of a training job, run by Ray Tune.

job            a sweep from its job to its end       lookup         finds sweeps in the store
ray_tuner      the Tuner and its callbacks           ray_search     searchers, constraints
ray_scheduler  schedulers                            ray_trial      one trial's process
trial_training what a trial trains                   trial_tracking    its run in MLflow
event_log      every event, written once             ray_replay     repeats the log after an interruption
event_schema   the events                            trial_table    events -> rows
report         what it found, with `plots` and `importance`         best_trial     its job, exported or continued
"""
