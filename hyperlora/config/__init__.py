"""Settings of a run: sections, keys, ranges, defaults and meanings; no torch."""
