"""The chat's tests: `python manage.py test`."""
