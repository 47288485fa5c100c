"""Models that run: what they do after compression, and smaller ones that learn from them. Only here is torch run."""

from __future__ import annotations

import os

# Threads that wait for others sleep instead of spinning: where programs share processors, a batch takes 5 ms instead
# of 20 to 400. OpenMP looks at this as torch is loaded, which is after this module.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
