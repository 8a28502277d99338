"""The server: composition root and run directory."""
