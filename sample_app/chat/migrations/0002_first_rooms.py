from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

ROOMS = {"lobby": "Lobby", "coffee-corner": "Coffee corner"}


def add_rooms(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    room = apps.get_model("chat", "Room")
    for slug, name in ROOMS.items():
        room.objects.get_or_create(slug=slug, defaults={"name": name})


class Migration(migrations.Migration):
    dependencies = [("chat", "0001_initial")]

    # Going back keeps the rooms: people may have written in them.
    operations = [migrations.RunPython(add_rooms, migrations.RunPython.noop)]
