"""Settings of Quintet Chat. Everything that differs between places comes from the environment; README.md lists it."""

import os
import tempfile
from pathlib import Path
from typing import Any

import dj_database_url
from django.core.exceptions import ImproperlyConfigured

from config.environment import flag, items, secret, text

BASE_DIR = Path(__file__).resolve().parent.parent
DEBUG = flag("DEBUG")

SECRET_KEY = secret("SECRET_KEY")
if not SECRET_KEY:
    if not DEBUG:
        raise ImproperlyConfigured(
            "SECRET_KEY is missing: there is neither a credential file nor an environment variable of that name. "
            "Give one of at least 50 random characters, or set DEBUG=1 on your own machine."
        )
    SECRET_KEY = "insecure-and-only-for-development-" + "0" * 32
SECRET_KEY_FALLBACKS = items(secret("SECRET_KEY_FALLBACKS"))

# Names, not "*": they also decide which origins may open a WebSocket.
ALLOWED_HOSTS = items(text("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]" if DEBUG else ""))
CSRF_TRUSTED_ORIGINS = items(text("CSRF_TRUSTED_ORIGINS", ""))
# The edge overwrites this header, so that it can be believed.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

# Where nobody comes over plain HTTP, no cookie goes over it either. The edge redirects, and tells browsers to come by HTTPS.
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = flag("HTTPS_ONLY")

INSTALLED_APPS = [
    # Makes runserver speak WebSocket. In production it would only load Twisted into Gunicorn.
    *(["daphne"] if DEBUG else []),
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "chat",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "config.security.ContentSecurityPolicyMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

# Everything comes from the site itself, WebSockets too; nothing is inline.
CONTENT_SECURITY_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
}

ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
ASGI_APPLICATION = "config.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "chat.context.quintet",
            ],
        },
    },
]


def database(url: str) -> dict[str, Any]:
    """Return Django's settings for the database at `url`.

    Connections stay open for ten minutes (1.5 to 2.6 times the requests of one connection each) and are checked
    before a request uses them again.
    """
    settings: dict[str, Any] = dict(dj_database_url.parse(url, conn_max_age=600, conn_health_checks=True))
    options = settings.setdefault("OPTIONS", {})
    if settings["ENGINE"].endswith("sqlite3"):
        # Writers wait for each other, and readers for nobody.
        options.update(timeout=20, transaction_mode="IMMEDIATE", init_command="PRAGMA journal_mode=WAL;")
        # A file: threads that share a database in memory get "table is locked" instead of waiting.
        settings["TEST"] = {"NAME": Path(tempfile.gettempdir()) / f"quintet-chat-test-{os.getpid()}.sqlite3"}
    elif settings["ENGINE"].endswith("postgresql"):
        options.setdefault("connect_timeout", 5)
        # Where PgBouncer is in between, a cursor's next rows would be asked of another session.
        settings["DISABLE_SERVER_SIDE_CURSORS"] = bool(secret("DATABASE_DIRECT_URL"))
        # A network that was cut says nothing: what is sent and not received, or kept open and not answered for, is given up after 5 s.
        # The kernel's own limits are a quarter of an hour, and two hours.
        options.setdefault("tcp_user_timeout", 5000)
        options.setdefault("keepalives_idle", 5)
        options.setdefault("keepalives_interval", 2)
    return settings


# A secret where it has a password.
DATABASES = {"default": database(secret("DATABASE_URL") or f"sqlite:///{BASE_DIR / 'db.sqlite3'}")}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# A socket renews its membership every quarter of this, so that only those of dead processes end.
CHANNEL_GROUP_EXPIRY_SECONDS = 3600


def channel_layer(url: str, password: str) -> dict[str, Any]:
    """Return Django's settings for the channel layer at `url`; an empty URL gives the one in this process's memory."""
    if not url:
        return {"BACKEND": "channels.layers.InMemoryChannelLayer"}
    host: dict[str, Any] = {
        "address": url,
        # Longer than the layer waits for a message, 5 s: redis-py 8 gives up after as long, and would lose idle sockets.
        # But not much longer: so late is it seen that the network was cut.
        "socket_timeout": 10,
        "socket_connect_timeout": 2,
        # Each join and leave takes a connection for a moment: a thousand at once must not fail.
        "max_connections": 5000,
    }
    if password:
        host["password"] = password
    return {
        "BACKEND": "channels_redis.core.RedisChannelLayer",
        "CONFIG": {
            "hosts": [host],
            # Messages that wait for one process. The default of 100 loses some when many people write at once.
            "capacity": 1000,
            # Seconds that a message waits for a busy process; whoever comes later has it from the history.
            "expiry": 60,
            "group_expiry": CHANNEL_GROUP_EXPIRY_SECONDS,
        },
    }


CHANNEL_LAYER_URL = text("CHANNEL_LAYER_URL", "")
CHANNEL_LAYERS = {"default": channel_layer(CHANNEL_LAYER_URL, secret("CHANNEL_LAYER_PASSWORD"))}

STATIC_URL = "/static/"
STATIC_ROOT = text("STATIC_ROOT", str(BASE_DIR / "static_collected"))
MEDIA_URL = "/media/"
MEDIA_ROOT = text("MEDIA_ROOT", str(BASE_DIR / "media"))
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        # Names with a digest of the content, so that browsers may keep the files for ever.
        "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"
        if DEBUG
        else "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"
    },
}

USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"

# The log goes to stderr; the journal adds the time.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{levelname} {name}: {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": text("LOG_LEVEL", "INFO").upper()},
    # Without its own handlers (which mail the admins), so that a line appears once.
    "loggers": {"django": {"handlers": [], "propagate": True}},
}

QUINTET_GENERATION = text("QUINTET_GENERATION", "development")
