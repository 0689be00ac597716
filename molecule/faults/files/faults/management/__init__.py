"""Commands of the faulty app."""
