import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

from channels.layers import get_channel_layer
from django.conf import settings
from django.db import OperationalError, connections
from django.test import TransactionTestCase
from redis.exceptions import ConnectionError as RedisConnectionError

from chat import consumers, messages, presence
from chat.models import Message, Room
from chat.people import Person
from chat.tests.sockets import Client, enter


async def wait_for_ever(*_: object) -> None:
    """Take the place of what is on the other side of a network that was cut."""
    await asyncio.Event().wait()


class SocketTestCase(TransactionTestCase):
    """Tests whose threads see each other's rows, with the first rooms made anew for each."""

    def setUp(self):
        self.lobby = Room.objects.get_or_create(slug="lobby", defaults={"name": "Lobby"})[0]
        get_channel_layer().groups.clear()


class HealthSocketTest(SocketTestCase):
    async def test_ping(self):
        client = Client("/ws/health/")
        self.assertTrue((await client.connect())[0])
        await client.send_json_to({"type": "ping"})
        self.assertEqual(
            await client.receive_json_from(),
            {"type": "pong", "generation": settings.QUINTET_GENERATION, "process": os.getpid()},
        )
        await client.disconnect()

    async def test_other_sites_are_refused(self):
        for path in ("/ws/health/", "/ws/rooms/lobby/"):
            for origin in (None, b"null", b"https://evil.example"):
                with self.subTest(path=path, origin=origin):
                    client = Client(path, origin=origin)
                    self.assertFalse((await client.connect())[0])

    async def test_unknown_path(self):
        self.assertFalse((await Client("/ws/nothing/").connect())[0])


class RoomSocketTest(SocketTestCase):
    async def test_two_people_talk(self):
        ann, _ = await enter(client="a", name="Ann")
        ben, _ = await enter(client="b", name="Ben")
        await ann.send_json_to({"type": "message", "ref": "1", "text": " hello\n"})
        ack = await ann.expect("ack")
        message = await Message.objects.aget()
        self.assertEqual(ack, {"type": "ack", "ref": "1", "id": message.pk})
        for client in (ann, ben):
            self.assertEqual(
                await client.expect("message"),
                {
                    "type": "message",
                    "id": message.pk,
                    "author": "Ann",
                    "text": "hello",
                    "sent_at": message.sent_at.isoformat(),
                },
            )
        await ann.disconnect()
        await ben.disconnect()

    async def test_rooms_are_apart(self):
        await Room.objects.acreate(slug="den", name="Den")
        ann, _ = await enter("lobby")
        ben, _ = await enter("den")
        await ann.send_json_to({"type": "message", "ref": "1", "text": "hello"})
        await ann.expect("ack")
        with self.assertRaises(asyncio.TimeoutError):
            await ben.expect("message", 0.5)
        await ann.disconnect()

    async def test_a_post_arrives_over_the_socket(self):
        ann, _ = await enter()
        path = "/rooms/lobby/messages?client=b&name=Ben"
        response = await self.async_client.post(path, {"ref": "1", "text": "by form"})
        self.assertEqual(response.status_code, 302)
        message = await ann.expect("message")
        self.assertEqual((message["author"], message["text"]), ("Ben", "by form"))
        await ann.disconnect()

    async def test_history(self):
        for number in range(60):
            await Message.objects.acreate(room=self.lobby, client="c", ref=str(number), author="Ann", text=str(number))
        ann, history = await enter()
        self.assertEqual([message["text"] for message in history], [str(number) for number in range(10, 60)])
        self.assertEqual(set(history[0]), {"type", "id", "author", "text", "sent_at"})
        await ann.disconnect()

    async def test_what_the_history_had_does_not_come_again(self):
        message = await Message.objects.acreate(room=self.lobby, client="c", ref="1", author="Ann", text="once")
        ann, history = await enter()
        self.assertEqual([entry["id"] for entry in history], [message.pk])
        await messages.broadcast(message)
        await ann.send_json_to({"type": "ping"})
        await ann.expect("pong")
        await ann.disconnect()

    async def test_the_cookie_names_the_author(self):
        response = await self.async_client.get("/")
        person, cookie = response.context["person"], response.cookies["person"].value
        ann, _ = await enter(cookie=f"person={cookie}", name="Eve", client="e")
        await ann.send_json_to({"type": "message", "ref": "1", "text": "hello"})
        self.assertEqual((await ann.expect("ack"))["ref"], "1")
        message = await Message.objects.aget()
        self.assertEqual((message.client, message.author), (person.client, person.name))
        await ann.disconnect()

    async def test_without_a_name(self):
        ann, _ = await enter()
        await ann.send_json_to({"type": "message", "ref": "1", "text": "hello"})
        await ann.expect("ack")
        self.assertEqual((await ann.expect("message"))["author"], "Guest")
        await ann.disconnect()

    async def test_unknown_room(self):
        client = Client("/ws/rooms/nowhere/")
        self.assertTrue((await client.connect())[0])
        self.assertEqual((await client.receive_json_from())["code"], "no_room")
        self.assertEqual(await client.receive_output(), {"type": "websocket.close", "code": 4404})

    async def test_ping(self):
        ann, _ = await enter()
        await ann.send_json_to({"type": "ping"})
        self.assertEqual((await ann.expect("pong"))["process"], os.getpid())
        await ann.disconnect()


class RefTest(SocketTestCase):
    """A message is stored once, however often and wherever its ref is sent."""

    def setUp(self):
        super().setUp()
        self.content = {"type": "message", "ref": "one", "text": "hello"}

    async def test_again_after_reconnecting(self):
        ann, _ = await enter(client="a")
        await ann.send_json_to(self.content)
        first = await ann.expect("ack")
        await ann.disconnect()
        ann, history = await enter(client="a")
        await ann.send_json_to(self.content)
        self.assertEqual(await ann.expect("ack"), first)
        self.assertEqual([message["id"] for message in history], [first["id"]])
        await ann.send_json_to({"type": "ping"})
        await ann.expect("pong")  # and no message before it
        await ann.disconnect()

    async def test_the_others_hear_it_once(self):
        path, accept = "/rooms/lobby/messages?client=a", {"Accept": "application/json"}
        ann, _ = await enter(client="a")
        ben, _ = await enter(client="b")
        for _ in range(2):
            await ann.send_json_to(self.content)
            await self.async_client.post(path, {"ref": "one", "text": "hello"}, headers=accept)
        await ann.send_json_to({**self.content, "ref": "two", "text": "the next"})
        self.assertEqual([(await ben.expect("message"))["text"] for _ in range(2)], ["hello", "the next"])
        await ann.disconnect()
        await ben.disconnect()

    async def test_on_many_connections_at_once(self):
        clients = [(await enter(client="a"))[0] for _ in range(8)]
        await asyncio.gather(*(client.send_json_to(self.content) for client in clients))
        received = [[await client.receive_json_from(5) for _ in range(2)] for client in clients]
        acks = {entry["id"] for entries in received for entry in entries if entry["type"] == "ack"}
        self.assertEqual(len(acks), 1)
        self.assertEqual(await Message.objects.acount(), 1)
        for client in clients:
            await client.disconnect()

    async def test_over_both_ways(self):
        response = await self.async_client.post(
            "/rooms/lobby/messages?client=a", {"ref": "one", "text": "hello"}, headers={"Accept": "application/json"}
        )
        ann, _ = await enter(client="a")
        await ann.send_json_to(self.content)
        self.assertEqual((await ann.expect("ack"))["id"], response.json()["id"])
        self.assertEqual(await Message.objects.acount(), 1)
        await ann.disconnect()

    def test_in_threads_of_their_own_connections(self):
        def store(_):
            try:
                return messages.store(self.lobby.pk, Person("a", "Ann"), "one", "hello")
            finally:
                connections.close_all()

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(store, range(16)))
        self.assertEqual(len({message.pk for message, _ in results}), 1)
        self.assertEqual(sum(created for _, created in results), 1)

    async def test_for_another_text(self):
        ann, _ = await enter(client="a")
        await ann.send_json_to(self.content)
        await ann.expect("ack")
        await ann.expect("message")
        await ann.send_json_to({**self.content, "text": "other"})
        error = await ann.expect("error")
        self.assertEqual((error["code"], error["ref"]), ("ref_taken", "one"))
        await ann.disconnect()

    async def test_of_two_clients(self):
        ann, _ = await enter(client="a")
        ben, _ = await enter(client="b")
        await ann.send_json_to(self.content)
        first = await ben.expect("message")
        await ben.send_json_to(self.content)
        self.assertNotEqual((await ben.expect("ack"))["id"], first["id"])
        await ann.disconnect()
        await ben.disconnect()


class BadInputTest(SocketTestCase):
    async def test_each_is_answered_and_the_socket_lives_on(self):
        message = {"type": "message", "ref": "1"}
        cases = [
            ("no json", "bad_json"),
            ("[" * 30_000, "bad_json"),
            ("x" * 32_001, "too_long"),
            ([], "type_missing"),
            ({}, "type_missing"),
            ({"type": 1}, "type_missing"),
            ({"type": "dance"}, "unknown_type"),
            ({"type": "history"}, "unknown_type"),
            ({"type": "message", "text": "x"}, "ref_missing"),
            ({"type": "message", "text": "x", "ref": 5}, "ref_missing"),
            ({"type": "message", "text": "x", "ref": "r" * 65}, "bad_ref"),
            ({"type": "message", "text": "x", "ref": "\0"}, "bad_ref"),
            (message, "text_missing"),
            ({**message, "text": ["x"]}, "text_missing"),
            ({**message, "text": " "}, "empty"),
            ({**message, "text": "x" * 2001}, "too_long"),
            ({**message, "text": "\0"}, "bad_text"),
            ({**message, "text": "\ud800"}, "bad_text"),
        ]
        ann, _ = await enter()
        for content, code in cases:
            with self.subTest(content=str(content)[:60], code=code):
                if isinstance(content, str):
                    await ann.send_to(text_data=content)
                else:
                    await ann.send_json_to(content)
                error = await ann.expect("error")
                self.assertEqual(error["code"], code)
                self.assertTrue(error["message"])
        await ann.send_to(bytes_data=b"\x00\x01")
        self.assertEqual((await ann.expect("error"))["code"], "not_text")
        await ann.send_json_to({**message, "text": "x" * 2000})
        await ann.expect("ack")
        self.assertEqual(await Message.objects.acount(), 1)
        await ann.disconnect()

    async def test_too_fast(self):
        with patch.object(consumers, "BURST", 3), patch.object(consumers, "RATE", 0.0):
            ann, _ = await enter()
        for number in range(4):
            await ann.send_json_to({"type": "message", "ref": str(number), "text": "x"})
        kinds = []
        while "error" not in kinds:
            content = await ann.receive_json_from(5)
            kinds.append(content["type"])
        self.assertEqual((content["code"], content["ref"]), ("too_fast", "3"))
        self.assertEqual(kinds.count("ack"), 3)
        await ann.disconnect()

    async def test_the_database_is_away(self):
        ann, _ = await enter()
        with (
            patch.object(messages, "store", side_effect=OperationalError("secret")),
            self.assertLogs("chat.consumers", "ERROR"),
        ):
            await ann.send_json_to({"type": "message", "ref": "1", "text": "x"})
            error = await ann.expect("error")
        self.assertEqual((error["code"], error["ref"]), ("unavailable", "1"))
        self.assertNotIn("secret", error["message"])
        await ann.send_json_to({"type": "message", "ref": "1", "text": "x"})
        await ann.expect("ack")
        await ann.disconnect()

    async def test_the_channel_layer_is_away(self):
        ann, _ = await enter()
        with (
            patch.object(get_channel_layer(), "group_send", side_effect=ConnectionError),
            self.assertLogs("chat.messages", "ERROR"),
        ):
            await ann.send_json_to({"type": "message", "ref": "1", "text": "x"})
            await ann.expect("ack")
        self.assertEqual(await Message.objects.acount(), 1)
        await ann.disconnect()

    async def test_the_channel_layer_is_late(self):
        ann, _ = await enter()
        with (
            patch.object(messages, "CHANNEL_LAYER_SECONDS", 0.05),
            patch.object(get_channel_layer(), "group_send", side_effect=wait_for_ever),
            self.assertLogs("chat.messages", "ERROR"),
        ):
            await ann.send_json_to({"type": "message", "ref": "1", "text": "x"})
            await ann.expect("ack")
        await ann.disconnect()

    async def test_the_room_is_deleted_meanwhile(self):
        ann, _ = await enter()
        await self.lobby.adelete()
        await ann.send_json_to({"type": "message", "ref": "1", "text": "x"})
        self.assertEqual((await ann.expect("error"))["code"], "no_room")
        await ann.disconnect()


class ChannelLayerLossTest(SocketTestCase):
    """The channel layer fails under sockets that are open, as Redis does when it restarts or its network is cut."""

    async def lose_one(self) -> Client:
        """Open a WebSocket and let the channel layer fail while it waits for messages, as for one of each process."""
        layer = get_channel_layer()
        with patch.object(layer, "receive", side_effect=RedisConnectionError):
            client = Client("/ws/rooms/lobby/", client="lost")
            with self.assertLogs("chat.consumers", "WARNING"):
                await client.connect()
                await self.expect_close(client)
        return client

    async def expect_close(self, client: Client) -> None:
        """Demand that the client is told to come back."""
        while (output := await client.receive_output(5))["type"] == "websocket.send":
            pass
        self.assertEqual(output, {"type": "websocket.close", "code": 4503})

    async def test_the_one_that_waited_is_told_to_come_back_and_is_no_longer_online(self):
        await self.lose_one()
        self.assertEqual(presence.register().connections, {})

    async def test_the_others_join_again_and_hear_what_they_have_missed(self):
        ann, _ = await enter(client="a")
        get_channel_layer().groups.clear()
        message = await Message.objects.acreate(room=self.lobby, client="c", ref="1", author="Eve", text="meanwhile")
        await messages.broadcast(message)
        await self.lose_one()
        self.assertEqual([one["text"] for one in (await ann.expect("history"))["messages"]], ["meanwhile"])
        await self.async_client.post("/rooms/lobby/messages?client=b", {"ref": "2", "text": "afterwards"})
        self.assertEqual((await ann.expect("message"))["text"], "afterwards")
        await ann.disconnect()

    async def test_those_that_can_not_join_again_are_told_to_come_back(self):
        clients = [(await enter(client=name))[0] for name in "abc"]
        with (
            patch.object(messages, "CHANNEL_LAYER_SECONDS", 0.05),
            patch.object(presence, "REJOIN_AT_ONCE", 1),
            patch.object(get_channel_layer(), "group_add", side_effect=wait_for_ever) as group_add,
        ):
            presence.register().rejoin()
            for client in clients:
                await self.expect_close(client)
            # The first one waited for all.
            self.assertEqual(group_add.call_count, 1)
        for client in clients:
            await client.disconnect()

    async def test_nobody_gets_in_without_it(self):
        with (
            patch.object(messages, "CHANNEL_LAYER_SECONDS", 0.05),
            patch.object(get_channel_layer(), "group_add", side_effect=wait_for_ever),
            self.assertLogs("chat.consumers", "WARNING"),
        ):
            client = Client("/ws/rooms/lobby/")
            await client.connect()
            await self.expect_close(client)

    async def test_it_is_away_when_somebody_leaves(self):
        ann, _ = await enter()
        with patch.object(get_channel_layer(), "group_discard", side_effect=RedisConnectionError):
            await ann.disconnect()
        self.assertEqual(presence.register().connections, {})
