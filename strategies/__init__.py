"""The server side: methods, the round loop and who takes part."""
