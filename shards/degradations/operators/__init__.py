"""The operators, one module per kind. Importing this package registers all of them in `OPERATORS`."""

from shards.degradations.operators import (  # noqa: F401
    blur,
    colour,
    compression,
    light,
    noise,
    resize,
    sensor,
    weather,
)
