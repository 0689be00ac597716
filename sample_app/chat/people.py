"""Who writes: a name that people choose, and an id of their browser, both kept in one signed cookie."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from uuid import uuid4

from django.core import signing
from django.http import HttpRequest, HttpResponse

from chat.validation import BadInputError, clean_client, clean_name

COOKIE = "person"
COOKIE_SECONDS = 365 * 24 * 3600
NO_NAME = "Guest"


@dataclass(frozen=True)
class Person:
    """A browser or program (`client`, empty when it has none) and the name that its messages carry."""

    client: str = ""
    name: str = NO_NAME

    def named(self, name: str) -> "Person":
        """Return the same client under another name. Raises BadInputError for an impossible one."""
        return replace(self, name=clean_name(name))


def newcomer() -> Person:
    """Return a person with a new client id and a name that tells guests apart."""
    client = uuid4().hex
    return Person(client, f"{NO_NAME} {client[:4]}")


def identify(cookies: Mapping[str, str], query: Mapping[str, str]) -> Person:
    """Return whom the cookie names; without a valid one, whom the query string's `client` and `name` name.

    The query string is for programs, which keep no cookies; what is impossible in it counts as absent.
    """
    return from_cookie(cookies) or Person(
        _or_default(clean_client, query.get("client", ""), ""), _or_default(clean_name, query.get("name", ""), NO_NAME)
    )


def from_cookie(cookies: Mapping[str, str]) -> Person | None:
    """Return whom the signed cookie names, or None when it is missing or not ours."""
    try:
        return Person(**signing.loads(cookies.get(COOKIE, ""), salt=COOKIE, max_age=COOKIE_SECONDS))
    except (signing.BadSignature, TypeError, ValueError):
        return None


def visitor(request: HttpRequest) -> Person:
    """Return whom the page is made for: whom the cookie names, or a newcomer."""
    return from_cookie(request.COOKIES) or newcomer()


def remember(request: HttpRequest, response: HttpResponse, person: Person) -> HttpResponse:
    """Put the person into the response's cookie unless the request already had it, and return the response."""
    if from_cookie(request.COOKIES) != person:
        response.set_cookie(
            COOKIE,
            signing.dumps(asdict(person), salt=COOKIE),
            max_age=COOKIE_SECONDS,
            secure=request.is_secure(),
            httponly=True,
            samesite="Lax",
        )
    return response


def _or_default(clean: Callable[[str], str], value: str, default: str) -> str:
    try:
        return clean(value)
    except BadInputError:
        return default
