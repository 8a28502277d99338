"""Settings that must stand before torch is imported: one thread, as on one core; and nothing kept between tests."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HYPERLORA_CACHE"] = "off"
