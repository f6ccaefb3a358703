"""Parse job files: the schema of each kind of job, its presets and its validation."""
