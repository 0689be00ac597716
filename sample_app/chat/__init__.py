"""Quintet Chat: rooms, messages, and who is online."""
