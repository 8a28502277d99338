"""Clustered federation: FedIT inside clusters of clients."""
