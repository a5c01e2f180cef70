#!/bin/sh
# Run by PostgreSQL's image when its volume is empty: a user with a database of its own for Label
# Studio and for the backend.
set -eu

SECRETS_DIR=${SECRETS_DIR:-/run/secrets}

create() {
    psql --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" \
        --set=name="$1" --set=password="$(cat "$2")" <<'SQL'
CREATE USER :"name" PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
SQL
}

create label_studio "$SECRETS_DIR/label_studio_database_password"
create clip "$SECRETS_DIR/clip_database_password"
