"""Linear discriminant heads from class means shrunk to those of all clients."""
