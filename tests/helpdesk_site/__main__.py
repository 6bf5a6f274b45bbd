"""A real helpdesk on loopback: django-helpdesk, as its manual has it installed, in one folder.

    python tests/helpdesk_site prepare FOLDER    # migrations, a queue, the people; once
    python tests/helpdesk_site serve FOLDER      # "serving on http://127.0.0.1:PORT" on stdout

Nothing of django-helpdesk is replaced or told of the sidecar but by what its manual names: the two
variables HELPDESK_NEW_TICKET_WEBHOOK_URLS and HELPDESK_FOLLOWUP_WEBHOOK_URLS of the environment.
Its tongue is Korean, so that no rule can lean on the English titles of its follow-ups.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import django
from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.urls import include, path
from waitress import create_server

AGENTS = ("sora.kim", "dohyun.lee", "yuna.choi")  # their numbers in Django: 1, 2, 3
QUEUE = "IT"
APPS = "admin auth contenttypes humanize messages sessions sites"
MIDDLEWARE = (
    "sessions.middleware.SessionMiddleware",
    "auth.middleware.AuthenticationMiddleware",
    "messages.middleware.MessageMiddleware",
)
CONTEXT = (
    "django.template.context_processors.request",
    "django.contrib.auth.context_processors.auth",
    "django.contrib.messages.context_processors.messages",
)


def configure(folder: Path) -> None:
    """Django's settings; all that is kept is in `folder`."""
    settings.configure(
        SECRET_KEY="of-a-test-on-loopback",
        ALLOWED_HOSTS=["127.0.0.1"],
        ROOT_URLCONF=__name__,
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(folder / "helpdesk.sqlite3"),
                "OPTIONS": {"init_command": "PRAGMA synchronous = OFF"},  # no test pulls its plug
            }
        },
        MEDIA_ROOT=str(folder),
        INSTALLED_APPS=[*(f"django.contrib.{app}" for app in APPS.split()), "helpdesk"],
        MIDDLEWARE=[
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            *(f"django.contrib.{layer}" for layer in MIDDLEWARE),
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {"context_processors": list(CONTEXT)},
            }
        ],
        EMAIL_BACKEND="django.core.mail.backends.dummy.EmailBackend",  # it greets by mail otherwise
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],  # a quick log-in
        LOGIN_URL="helpdesk:login",
        LOGIN_REDIRECT_URL="helpdesk:home",
        STATIC_URL="/static/",
        SITE_ID=1,
        LANGUAGE_CODE="ko",
        TIME_ZONE="Asia/Seoul",
        USE_TZ=True,
        HELPDESK_TEAMS_MODE_ENABLED=False,
    )
    django.setup()


def prepare() -> None:
    """The tables, a queue for everybody, the agents (password = name)."""
    from django.contrib.auth import get_user_model
    from helpdesk.models import Queue

    call_command("migrate", verbosity=0)
    for name in AGENTS:
        get_user_model().objects.create_superuser(name, f"{name}@example.co.kr", name)
    Queue.objects.create(title="전산실", slug=QUEUE, allow_public_submission=True)


def serve() -> None:
    """Until the process is ended."""
    server = create_server(get_wsgi_application(), host="127.0.0.1", port=0, threads=4)
    print(f"serving on http://127.0.0.1:{server.effective_port}", flush=True)
    server.run()


if __name__ == "__main__":
    os.umask(0o077)
    configure(Path(sys.argv[2]))
    from django.contrib import admin

    urlpatterns = [path("", include("helpdesk.urls")), path("admin/", admin.site.urls)]
    {"prepare": prepare, "serve": serve}[sys.argv[1]]()
