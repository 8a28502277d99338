"""Who takes part and how they are reached: transport, roster, registrar, shipping, allow-list."""
