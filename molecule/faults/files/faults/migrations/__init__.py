"""Migrations, which the tests write."""
