"""Settings that must stand before torch is imported: one thread, as a client of a simulation on one core has."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
