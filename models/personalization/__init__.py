"""From a client's signature to its adapter: embeddings, prior, synthesizer, generators and corrector."""
