"""A way in: an app that runs whatever it is sent."""
