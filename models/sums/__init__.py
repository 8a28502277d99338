"""What a server can learn where it is told nothing but sums over clients: every function here is linear in clients."""
