"""Reading the settings' values: environment variables, and secrets that systemd hands over as files."""

import os
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured


def secret(name: str) -> str:
    """Return the secret `name`: the file of that name among systemd's credentials, else the environment variable.

    Empty when there is neither. Raises ImproperlyConfigured when the file is there and can't be read.
    """
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory:
        file = Path(directory) / name
        try:
            return file.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            pass
        except (OSError, UnicodeDecodeError) as error:
            raise ImproperlyConfigured(
                f"{name}: its credential file {file} can't be read ({type(error).__name__}). "
                "Make it a UTF-8 text file that the user of this process may read."
            ) from error
    return os.environ.get(name, "").strip()


def flag(name: str) -> bool:
    """Return whether the variable is 1; unset, empty and 0 mean no. Raises ImproperlyConfigured for anything else."""
    value = os.environ.get(name, "").strip()
    if value not in {"", "0", "1"}:
        raise ImproperlyConfigured(f"{name} is {value!r} in the environment. Set it to 0 or 1.")
    return value == "1"


def text(name: str, default: str) -> str:
    """Return the variable, or the default when it is unset or empty."""
    return os.environ.get(name, "").strip() or default


def items(value: str) -> list[str]:
    """Split a comma-separated list; spaces around items and empty items don't count."""
    return [item.strip() for item in value.split(",") if item.strip()]
