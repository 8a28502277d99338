"""Potara: the federated adapter merged with the client's last one."""
