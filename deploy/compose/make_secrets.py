"""Make the secrets that the services of docker-compose.yml share: a file each, once.

There is no default password this way, and nothing to think up. A value in the environment, under
the file's name in upper case, is taken at the first start instead.
"""

import os
import secrets
import shlex
from pathlib import Path

FOLDER = Path(os.environ["SECRETS_DIR"])
DATABASE_URL = "postgresql+psycopg://clip:{password}@postgres:5432/clip"


def keep(name: str, value: str) -> str:
    """Write a file that is not there yet; return what it holds."""
    path = FOLDER / name
    if not path.exists():
        new = path.with_suffix(".new")
        new.write_text(value)
        # Each image has another user. What protects the files is who mounts the volume.
        new.chmod(0o444)
        new.replace(path)
    return path.read_text()


def choose(name: str, made: str) -> str:
    """Keep what the environment says, or what was made up."""
    return keep(name, os.environ.get(name.upper()) or made)


label_studio = {
    "LABEL_STUDIO_PASSWORD": choose("label_studio_password", secrets.token_urlsafe(12)),
    "LABEL_STUDIO_USER_TOKEN": choose("label_studio_api_key", secrets.token_hex(20)),
    "POSTGRE_PASSWORD": choose("label_studio_database_password", secrets.token_hex(20)),
}
# Label Studio reads no secret files, but its image sources what ENV_INJECT_SOURCES names.
keep(
    "label_studio.env",
    "".join(f"export {name}={shlex.quote(value)}\n" for name, value in label_studio.items()),
)
choose("postgres_password", secrets.token_hex(20))
password = choose("clip_database_password", secrets.token_hex(20))
keep("database_url", DATABASE_URL.format(password=password))
choose("basic_auth_pass", secrets.token_urlsafe(24))
choose("grafana_password", secrets.token_urlsafe(12))
