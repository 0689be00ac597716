"""What may come in, the same for HTTP and WebSocket."""

from typing import Any

TEXT_CHARACTERS = 2000
REF_CHARACTERS = 64
CLIENT_CHARACTERS = 64
NAME_CHARACTERS = 40


class BadInputError(Exception):
    """Input that can't be taken: a code for programs, a message for people, and the `ref` that it was about."""

    def __init__(self, code: str, message: str, ref: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.ref = ref

    def as_json(self) -> dict[str, Any]:
        """Return the error as the protocol has it."""
        content: dict[str, Any] = {"type": "error", "code": self.code, "message": self.message}
        return content if self.ref is None else {**content, "ref": self.ref}


def clean_ref(value: object) -> str:
    """Return a client's own name of a message, or raise BadInputError."""
    if not isinstance(value, str) or not value:
        raise BadInputError("ref_missing", "The message has no 'ref'. Send a text that names it, such as a UUID.")
    if len(value) > REF_CHARACTERS or not value.isprintable():
        raise BadInputError("bad_ref", f"'ref' must be 1 to {REF_CHARACTERS} printable characters.")
    return value


def clean_text(value: object) -> str:
    """Return a message's text with plain line ends and nothing but text at its end, or raise BadInputError."""
    if not isinstance(value, str):
        raise BadInputError("text_missing", "The message has no 'text'. Write one.")
    text = value.replace("\r\n", "\n").replace("\r", "\n").strip()
    if not text:
        raise BadInputError("empty", "The message is empty. Write something first.")
    if len(text) > TEXT_CHARACTERS:
        raise BadInputError(
            "too_long", f"The message has {len(text)} characters; {TEXT_CHARACTERS} are allowed. Send it in parts."
        )
    # PostgreSQL stores neither NUL nor half a surrogate pair.
    if "\0" in text or not _encodable(text):
        raise BadInputError("bad_text", "The message has characters that are not text. Remove them.")
    return text


def clean_name(value: object) -> str:
    """Return a person's name with single spaces, or raise BadInputError."""
    name = " ".join(value.split()) if isinstance(value, str) else ""
    if not name or len(name) > NAME_CHARACTERS or not name.isprintable():
        raise BadInputError("bad_name", f"A name has 1 to {NAME_CHARACTERS} characters. Choose another one.")
    return name


def clean_client(value: object) -> str:
    """Return a client's id, or raise BadInputError."""
    if not isinstance(value, str) or len(value) > CLIENT_CHARACTERS or not value.isprintable():
        raise BadInputError("bad_client", f"'client' must be at most {CLIENT_CHARACTERS} printable characters.")
    return value


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
