from django.contrib.auth import get_user_model
from django.test import Client, TestCase

from chat.models import Message, Room
from chat.people import COOKIE, Person, from_cookie

JSON = {"Accept": "application/json"}


class RoomsTest(TestCase):
    def test_two_rooms_are_there_from_the_start(self):
        response = self.client.get("/")
        self.assertContains(response, 'href="/rooms/lobby/"')
        self.assertContains(response, 'href="/rooms/coffee-corner/"')

    def test_make_a_room(self):
        response = self.client.post("/", {"name": " Böat   club "})
        self.assertRedirects(response, "/rooms/boat-club/")
        self.assertEqual(Room.objects.get(slug="boat-club").name, "Böat club")

    def test_a_room_that_exists_is_entered(self):
        self.assertRedirects(self.client.post("/", {"name": "LOBBY"}), "/rooms/lobby/")
        self.assertEqual(Room.objects.count(), 2)

    def test_an_impossible_room_is_refused(self):
        for name in ("", "   ", "🙂", "x" * 61, "a\0b"):
            with self.subTest(name=name):
                response = self.client.post("/", {"name": name})
                self.assertContains(response, "A room&#x27;s name has", status_code=400)
        self.assertEqual(Room.objects.count(), 2)

    def test_unknown_room(self):
        self.assertEqual(self.client.get("/rooms/nowhere/").status_code, 404)
        self.assertEqual(self.client.post("/rooms/nowhere/messages", {"text": "x"}).status_code, 404)

    def test_the_room_shows_its_last_messages_escaped(self):
        room = Room.objects.get(slug="lobby")
        for number in range(60):
            Message.objects.create(room=room, client="c", ref=str(number), author="Ann", text=f"<b>number {number}</b>")
        response = self.client.get("/rooms/lobby/")
        self.assertContains(response, "&lt;b&gt;number 59&lt;/b&gt;")
        self.assertContains(response, "number 10&lt;")
        self.assertNotContains(response, "number 9&lt;")

    def test_the_policy_lets_nothing_in_from_elsewhere(self):
        for path in ("/", "/rooms/lobby/", "/healthz", "/admin/login/", "/nowhere"):
            policy = self.client.get(path).headers["Content-Security-Policy"]
            self.assertTrue(policy.startswith("default-src 'none'; script-src 'self'; "), policy)
            self.assertIn("frame-ancestors 'none'", policy)

    def test_nothing_is_inline(self):
        for path in ("/", "/rooms/lobby/"):
            page = self.client.get(path).content.decode()
            for inline in ("<style", " style=", "<script>", " onclick="):
                self.assertNotIn(inline, page)

    def test_the_admin_has_rooms_and_messages(self):
        get_user_model().objects.create_superuser("root", password="secret")
        self.client.login(username="root", password="secret")
        for path in ("/admin/chat/room/", "/admin/chat/message/"):
            self.assertEqual(self.client.get(path).status_code, 200)


class NameTest(TestCase):
    def person(self) -> Person | None:
        return from_cookie({name: morsel.value for name, morsel in self.client.cookies.items()})

    def test_a_newcomer_keeps_the_same_client_id(self):
        self.client.get("/")
        first = self.person()
        self.client.get("/rooms/lobby/")
        self.assertTrue(first.client)
        self.assertEqual(self.person(), first)

    def test_choose_a_name(self):
        self.client.get("/")
        client = self.person().client
        response = self.client.post("/name", {"name": " Ann  Lee ", "next": "/rooms/lobby/"})
        self.assertRedirects(response, "/rooms/lobby/")
        self.assertEqual(self.person(), Person(client, "Ann Lee"))

    def test_an_impossible_name_is_refused(self):
        for name in ("", "x" * 41, "a\0b"):
            with self.subTest(name=name):
                self.assertContains(self.client.post("/name", {"name": name}), "A name has", status_code=400)

    def test_never_away_to_another_site(self):
        for back in ("//evil.example", "https://evil.example/", "javascript:alert(1)"):
            with self.subTest(back=back):
                response = self.client.post("/name", {"name": "Ann", "next": back})
                self.assertRedirects(response, "/")

    def test_a_forged_cookie_is_nobody(self):
        self.client.cookies[COOKIE] = "eyJjbGllbnQiOiJ4In0:forged"
        self.assertIsNone(self.person())
        self.assertEqual(self.client.get("/").status_code, 200)


class PostTest(TestCase):
    path = "/rooms/lobby/messages"

    def test_a_form_without_script(self):
        browser = Client(enforce_csrf_checks=True)
        page = browser.get("/rooms/lobby/")
        response = browser.post(
            self.path,
            {"csrfmiddlewaretoken": page.context["csrf_token"], "ref": page.context["ref"], "text": "by\r\nform "},
        )
        self.assertRedirects(response, "/rooms/lobby/")
        message = Message.objects.get()
        self.assertEqual(message.text, "by\nform")
        self.assertEqual(message.author, page.context["person"].name)

    def test_without_the_csrf_token(self):
        browser = Client(enforce_csrf_checks=True)
        browser.get("/rooms/lobby/")
        self.assertEqual(browser.post(self.path, {"text": "x"}).status_code, 403)
        self.assertFalse(Message.objects.exists())

    def test_json(self):
        response = self.client.post(f"{self.path}?client=c&name=Ann", {"ref": "1", "text": "hello"}, headers=JSON)
        self.assertEqual(response.status_code, 201)
        message = Message.objects.get()
        self.assertEqual(
            response.json(),
            {
                "type": "message",
                "id": message.pk,
                "author": "Ann",
                "text": "hello",
                "sent_at": message.sent_at.isoformat(),
            },
        )

    def test_a_ref_sent_twice_is_stored_once(self):
        first = self.client.post(self.path, {"ref": "1", "text": "hello"}, headers=JSON)
        again = self.client.post(self.path, {"ref": "1", "text": "hello"}, headers=JSON)
        self.assertEqual((first.status_code, again.status_code), (201, 200))
        self.assertEqual(first.json(), again.json())
        self.assertEqual(Message.objects.count(), 1)

    def test_the_same_ref_of_another_client_is_another_message(self):
        for client in ("a", "b"):
            response = self.client.post(f"{self.path}?client={client}", {"ref": "1", "text": client}, headers=JSON)
            self.assertEqual(response.status_code, 201)

    def test_the_cookie_is_stronger_than_the_query(self):
        name = self.client.get("/").context["person"].name
        response = self.client.post(f"{self.path}?name=Eve", {"text": "hello"}, headers=JSON)
        self.assertEqual(response.json()["author"], name)

    def test_bad_input(self):
        for data, code in (
            ({}, "text_missing"),
            ({"text": " \n "}, "empty"),
            ({"text": "x" * 2001}, "too_long"),
            ({"text": "a\0b"}, "bad_text"),
            ({"text": "x", "ref": "r" * 65}, "bad_ref"),
        ):
            with self.subTest(code=code):
                response = self.client.post(self.path, data, headers=JSON)
                self.assertEqual(response.status_code, 400)
                self.assertEqual(response.json()["code"], code)
        self.assertFalse(Message.objects.exists())

    def test_bad_input_by_form_keeps_what_was_written(self):
        response = self.client.post(self.path, {"text": "y" * 2001})
        self.assertContains(response, "y" * 2001, status_code=400)
        self.assertContains(response, "2000 are allowed", status_code=400)

    def test_a_get_is_refused(self):
        self.assertEqual(self.client.get(self.path).status_code, 405)
