"""What a worker is told: the clients' payloads, read once into our own configs.

Published clients send many keys. None is refused: what applies here is applied, the rest is kept in `not_applied`
with the reason, and becomes an event of the job. A value that cannot be trained with is refused, with its key.
"""

from train_app.specs.base import Spec
from train_app.specs.rl import RlSpec, read_rl
from train_app.specs.sft import SftSpec, read_sft

__all__ = ["RlSpec", "SftSpec", "Spec", "read_rl", "read_sft"]
