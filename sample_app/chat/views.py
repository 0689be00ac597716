"""The pages, and messages by plain HTTP."""

from uuid import uuid4

from asgiref.sync import async_to_sync
from django.db.models import Count, Max
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.text import slugify
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from chat import messages, presence
from chat.models import Room
from chat.people import identify, remember, visitor
from chat.validation import NAME_CHARACTERS, TEXT_CHARACTERS, BadInputError, clean_name, clean_ref, clean_text

ROOMS_LISTED = 100
ROOM_NAME_CHARACTERS = 60


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def rooms(request: HttpRequest) -> HttpResponse:
    """List the rooms; POST makes one, or goes to the one that has the name already."""
    error = name = ""
    if request.method == "POST":
        name = " ".join(request.POST.get("name", "").split())
        # An address of plain letters can be read out, typed and sent through anything.
        slug = slugify(name)[:ROOM_NAME_CHARACTERS].strip("-")
        if slug and len(name) <= ROOM_NAME_CHARACTERS and name.isprintable():
            room, _ = Room.objects.get_or_create(slug=slug, defaults={"name": name})
            return redirect(room)
        error = f"A room's name has 1 to {ROOM_NAME_CHARACTERS} characters, with letters a to z or digits among them."
    person = visitor(request)
    listed = Room.objects.annotate(message_count=Count("messages"), last_message_at=Max("messages__sent_at"))
    context = {
        "rooms": listed.order_by("name")[:ROOMS_LISTED],
        "person": person,
        "error": error,
        "name": name,
        "name_characters": NAME_CHARACTERS,
        "room_name_characters": ROOM_NAME_CHARACTERS,
    }
    return remember(request, render(request, "chat/rooms.html", context, status=400 if error else 200), person)


@never_cache
@require_safe
def room(request: HttpRequest, slug: str) -> HttpResponse:
    """Show a room with its last messages."""
    return _room_page(request, get_object_or_404(Room, slug=slug))


@never_cache
@require_POST
def post_message(request: HttpRequest, slug: str) -> HttpResponse:
    """Store a message and tell the room; back to the room, or the message itself for who prefers JSON.

    201 when it is new, 200 when this client's `ref` was there already, 400 with the protocol's error for bad input.
    """
    room = get_object_or_404(Room, slug=slug)
    person = identify(request.COOKIES, request.GET)
    wants_json = request.get_preferred_type(["text/html", "application/json"]) == "application/json"
    try:
        text = clean_text(request.POST.get("text"))
        ref = clean_ref(request.POST.get("ref") or uuid4().hex)
        message, created = messages.store(room.pk, person, ref, text)
    except BadInputError as error:
        if wants_json:
            return JsonResponse(error.as_json(), status=400)
        return _room_page(request, room, error=error.message, text=request.POST.get("text", ""))
    if created:
        async_to_sync(messages.broadcast)(message)
    if wants_json:
        return JsonResponse(messages.as_json(message), status=201 if created else 200)
    return redirect(room)


@require_POST
def set_name(request: HttpRequest) -> HttpResponse:
    """Give the visitor another name, and go back to the page that asked, if it is one of ours."""
    back = request.POST.get("next", "")
    if not url_has_allowed_host_and_scheme(back, allowed_hosts=None):
        back = "/"
    person = visitor(request)
    try:
        person = person.named(clean_name(request.POST.get("name")))
    except BadInputError as error:
        return render(
            request,
            "chat/name.html",
            {"person": person, "error": error.message, "next": back, "name_characters": NAME_CHARACTERS},
            status=400,
        )
    return remember(request, redirect(back), person)


def _room_page(request: HttpRequest, room: Room, *, error: str = "", text: str = "") -> HttpResponse:
    person = visitor(request)
    context = {
        "room": room,
        "person": person,
        "history": messages.history(room.pk),
        "online": presence.online_in([room.pk])[room.pk],
        "ref": uuid4().hex,
        "error": error,
        "text": text,
        "name_characters": NAME_CHARACTERS,
        "text_characters": TEXT_CHARACTERS,
    }
    return remember(request, render(request, "chat/room.html", context, status=400 if error else 200), person)
