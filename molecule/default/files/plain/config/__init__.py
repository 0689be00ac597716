"""A Django project with neither database, channels nor static files; its secret comes by the environment."""
