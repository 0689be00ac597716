#!/usr/bin/env python
"""Django's command line for Quintet Chat."""

import os
import sys


def main() -> None:
    """Run the command that the arguments name."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    if sys.argv[1:2] == ["test"]:
        # Tests need no secret, no collected static files and no Redis; DATABASE_URL counts.
        os.environ.update(DEBUG="1", CHANNEL_LAYER_URL="")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
