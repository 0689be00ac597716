import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Room",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=60)),
                ("slug", models.SlugField(max_length=60, unique=True)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
            ],
            options={
                "ordering": ("name",),
            },
        ),
        migrations.CreateModel(
            name="Presence",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("process", models.UUIDField()),
                ("people", models.JSONField(help_text="[[client, name], …]")),
                ("expires_at", models.DateTimeField(db_index=True)),
                (
                    "room",
                    models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="+", to="chat.room"),
                ),
            ],
            options={
                "constraints": [models.UniqueConstraint(fields=("process", "room"), name="presence_process_room")],
            },
        ),
        migrations.CreateModel(
            name="Message",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "client",
                    models.CharField(blank=True, help_text="The browser or program that sent it.", max_length=64),
                ),
                (
                    "ref",
                    models.CharField(
                        help_text="The client's own name for it, so that a resent one is known.", max_length=64
                    ),
                ),
                ("author", models.CharField(max_length=40)),
                ("text", models.TextField()),
                ("sent_at", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "room",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="messages", to="chat.room"
                    ),
                ),
            ],
            options={
                "indexes": [models.Index(fields=["room", "-id"], name="message_history")],
                "constraints": [models.UniqueConstraint(fields=("room", "client", "ref"), name="message_ref_once")],
            },
        ),
    ]
