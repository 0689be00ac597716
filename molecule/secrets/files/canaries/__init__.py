"""Tells which secrets an app has, by their digests."""
