import asyncio
from datetime import timedelta
from unittest.mock import AsyncMock, patch
from uuid import uuid4

from django.test import TestCase, override_settings
from django.utils import timezone

from chat import presence
from chat.models import Presence, Room
from chat.people import Person
from chat.tests.sockets import enter
from chat.tests.test_sockets import SocketTestCase

ANN, BEN, NOBODY = Person("a", "Ann"), Person("b", "ben"), Person()


class ReportTest(TestCase):
    """What processes say about themselves, and read of each other."""

    def setUp(self):
        self.lobby = Room.objects.get(slug="lobby").pk
        self.corner = Room.objects.get(slug="coffee-corner").pk

    def online(self) -> list[str]:
        return presence.online_in([self.lobby])[self.lobby]

    def test_several_processes(self):
        presence.report(uuid4(), {self.lobby: [BEN], self.corner: [NOBODY]})
        presence.report(uuid4(), {self.lobby: [ANN]})
        self.assertEqual(self.online(), ["Ann", "ben"])

    def test_two_tabs_are_one_person_also_on_two_processes(self):
        presence.report(uuid4(), {self.lobby: [ANN, ANN]})
        presence.report(uuid4(), {self.lobby: [ANN]})
        self.assertEqual(self.online(), ["Ann"])

    def test_two_programs_without_an_id_are_two(self):
        presence.report(uuid4(), {self.lobby: [NOBODY, NOBODY]})
        self.assertEqual(self.online(), ["Guest", "Guest"])

    def test_a_process_overwrites_what_it_said(self):
        process = uuid4()
        presence.report(process, {self.lobby: [ANN, BEN]})
        presence.report(process, {self.lobby: [BEN]})
        self.assertEqual(self.online(), ["ben"])
        presence.report(process, {})
        self.assertEqual(self.online(), [])
        self.assertFalse(Presence.objects.exists())

    def test_a_dead_process_expires_and_is_cleared_by_the_others(self):
        dead = uuid4()
        presence.report(dead, {self.lobby: [ANN]})
        Presence.objects.filter(process=dead).update(expires_at=timezone.now() - timedelta(seconds=1))
        self.assertEqual(self.online(), [])
        presence.report(uuid4(), {self.lobby: [BEN]})
        self.assertFalse(Presence.objects.filter(process=dead).exists())

    def test_the_lease(self):
        presence.report(uuid4(), {self.lobby: [ANN]})
        left = Presence.objects.get().expires_at - timezone.now()
        self.assertAlmostEqual(left.total_seconds(), presence.LEASE, delta=2)

    def test_a_room_that_is_gone_spoils_nothing(self):
        presence.report(uuid4(), {self.lobby: [ANN], 999_999: [BEN]})
        self.assertEqual(self.online(), ["Ann"])


@patch.object(presence, "GATHER", 0.01)
@patch.object(presence, "POLL", 0.05)
class OnlineTest(SocketTestCase):
    """What the sockets are told."""

    async def online(self, client, names):
        """Wait until the client is told exactly these names."""
        while (await client.receive_json_from(5)).get("online") != names:
            pass

    async def test_joining_and_leaving(self):
        ann, _ = await enter(client="a", name="Ann")
        await self.online(ann, ["Ann"])
        ben, _ = await enter(client="b", name="Ben")
        await self.online(ben, ["Ann", "Ben"])
        await self.online(ann, ["Ann", "Ben"])
        await ben.disconnect()
        await self.online(ann, ["Ann"])
        await ann.disconnect()

    async def test_another_process(self):
        ann, _ = await enter(client="a", name="Ann")
        await self.online(ann, ["Ann"])
        await Presence.objects.acreate(
            process=uuid4(),
            room=self.lobby,
            people=[["z", "Zoe"]],
            expires_at=timezone.now() + timedelta(seconds=0.5),
        )
        await self.online(ann, ["Ann", "Zoe"])
        await self.online(ann, ["Ann"])  # it never said so again
        await ann.disconnect()

    async def test_the_lease_is_renewed(self):
        with patch.object(presence, "RENEW", 0.1):
            ann, _ = await enter(client="a", name="Ann")
            await self.online(ann, ["Ann"])
            first = (await Presence.objects.aget()).expires_at
            await asyncio.sleep(0.5)
            self.assertGreater((await Presence.objects.aget()).expires_at, first)
            await ann.disconnect()

    async def test_nothing_is_left_behind(self):
        ann, _ = await enter(client="a", name="Ann")
        await self.online(ann, ["Ann"])
        await ann.disconnect()
        async with asyncio.timeout(5):
            while await Presence.objects.aexists():
                await asyncio.sleep(0.02)

    async def test_it_comes_back_after_the_database_was_away(self):
        ann, _ = await enter(client="a", name="Ann")
        await self.online(ann, ["Ann"])
        with (
            patch.object(presence, "report", side_effect=OSError),
            self.assertLogs("chat.presence", "WARNING"),
        ):
            ben, _ = await enter(client="b", name="Ben")
            await asyncio.sleep(0.2)
        await self.online(ann, ["Ann", "Ben"])
        await ann.disconnect()
        await ben.disconnect()

    @override_settings(CHANNEL_GROUP_EXPIRY_SECONDS=0)
    async def test_the_place_in_the_group_is_renewed_and_one_broken_socket_spoils_nothing(self):
        register = presence.register()
        broken = presence.Connection(
            self.lobby.pk, BEN, AsyncMock(side_effect=OSError), *(AsyncMock() for _ in range(3))
        )
        well = presence.Connection(self.lobby.pk, ANN, *(AsyncMock() for _ in range(4)))
        register.join("broken", broken)
        register.join("well", well)
        async with asyncio.timeout(5):
            while not (well.tell.called and well.renew.called):
                await asyncio.sleep(0.02)
        well.tell.assert_called_with(["Ann", "ben"])
        register.leave("broken")
        register.leave("well")
