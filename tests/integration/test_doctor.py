from __future__ import annotations

from pathlib import Path

import pytest

from backend.doctor import examine
from backend.settings import Settings
from backend.store import Store
from tests.integration.conftest import PictureServer
from tests.integration.fake_label_studio import CONFIG, PROJECT, FakeLabelStudio


@pytest.mark.parametrize(
    ("hosts", "path", "said", "mend"),
    [
        ("public", "red", "IMAGE_HOSTS allows no picture", "list that host in IMAGE_HOSTS"),
        ("127.0.0.1", "missing", "answered 404", "check the token's rights"),
        ("127.0.0.1", "red", "1 looked at, all can be fetched", ""),
    ],
)
def test_pictures_that_cannot_be_fetched_are_told_with_what_mends_that(
    label_studio: FakeLabelStudio,
    pictures: PictureServer,
    redis_url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    hosts: str,
    path: str,
    said: str,
    mend: str,
) -> None:
    settings = Settings.read(
        label_studio_url=label_studio.url,
        label_studio_api_key=label_studio.token,
        redis_url=redis_url,
        data_dir=tmp_path,
        image_hosts=hosts,
    )
    store = Store.open(settings.database)
    store.projects.set_up(PROJECT, label_config=CONFIG, extra_params={})
    store.close()
    label_studio.add_tasks(f"{pictures.url}/{path}")

    examine(settings, [PROJECT])

    # The console breaks lines where the terminal ends.
    printed = " ".join(capsys.readouterr().out.split())
    assert said in printed
    assert mend in printed.partition(" pictures: ")[2]
