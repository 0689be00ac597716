"""What all unit tests need: the collection by its full name, as Ansible imports it in a play, and the host command's package."""

import sys
from pathlib import Path

from ansible.plugins.loader import init_plugin_loader

ROOT = Path(__file__).parents[2]
init_plugin_loader([str(ROOT / "collections")])
sys.path.insert(0, str(ROOT / "roles/django_app/files/quintet"))
sys.path.insert(0, str(ROOT / "roles/nginx/files"))
