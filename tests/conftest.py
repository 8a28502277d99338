"""Settings that must stand before torch is imported: one thread, as on one core."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
