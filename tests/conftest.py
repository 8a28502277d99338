"""What holds for all tests: one thread, set before torch is imported; no cache between them; no wait for the disk."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HYPERLORA_CACHE"] = "off"
os.fsync = lambda descriptor: None  # no test cuts the power, and a run waits for the disk a hundred times
