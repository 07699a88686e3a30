"""One method, one file; a class, its frozen config beside it, and where it may be placed.

- ``junction``: streams in, streams out; the identity at initialisation.
- ``head``: pooled streams to the task's outputs.
- ``backbone``: opens modules of the backbone itself to training.
"""

from fusetune.registry import Registry

adapters = Registry(
    "adapters",
    {
        "wander": "fusetune.adapters.wander:Wander",
        "linear": "fusetune.adapters.heads:LinearHead",
        "mlp": "fusetune.adapters.heads:MLPHead",
        "unfreeze": "fusetune.adapters.unfreeze:Unfreeze",
    },
)
