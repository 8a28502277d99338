"""FedPer, FedRep and FedBABU: a shared body under a head that is a client's own."""
