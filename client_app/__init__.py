"""The client: Flower handlers, the runtime of a process, local tasks, a site's files."""
