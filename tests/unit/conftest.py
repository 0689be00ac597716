"""What all unit tests need: the collection by its full name, as Ansible imports it in a play."""

from pathlib import Path

from ansible.plugins.loader import init_plugin_loader

init_plugin_loader([str(Path(__file__).parents[2] / "collections")])
