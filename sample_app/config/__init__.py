"""The project around the chat: settings, URLs and entry points."""
