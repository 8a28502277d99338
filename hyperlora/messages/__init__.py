"""What travels between server and clients, each message with its encoding and its checks."""
