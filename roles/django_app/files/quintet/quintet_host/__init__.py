"""What `quintet` does on a host; the words and paths are those of docs/architecture.md."""
