"""What manage.py can run."""
