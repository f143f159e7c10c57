from __future__ import annotations

import datasets as hf_datasets
import pytest
from datasets import Dataset

from tracelab.datasets import wikitext
from tracelab.errors import TracelabError

LINES = [" \n", " = Robert <unk> = \n", " \n", " Robert <unk> is an English film actor . \n"]
HUB_ROWS = ["", " = Robert <unk> = \n", "", " Robert <unk> is an English film actor . \n"]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "wiki.test.tokens"
    file.write_text("".join(LINES), encoding="utf-8")
    return file


def test_a_file_gives_the_rows_of_the_hubs_copy(path):
    assert wikitext(source=path) == HUB_ROWS
    assert wikitext(source=path, limit=2) == HUB_ROWS[:2]


def test_a_fake_hub_data_set_is_asked_for_the_word_level_release(monkeypatch):
    asked = []

    def fake_load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return Dataset.from_dict({"text": HUB_ROWS})

    monkeypatch.setattr(hf_datasets, "load_dataset", fake_load_dataset)
    assert wikitext("validation") == HUB_ROWS
    assert asked == [(("Salesforce/wikitext", "wikitext-2-v1"), {"split": "validation"})]


def test_a_hub_out_of_reach_is_one_error():
    with pytest.raises(TracelabError, match="cannot load Salesforce/wikitext from the hub"):
        wikitext()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "unknown split 'dev': choose one of test, validation, train"),
        ({"source": "/no/file"}, "no WikiText file at '/no/file'"),
        ({"limit": 1}, "no text in WikiText"),
        ({"limit": -1}, "no text in WikiText"),
    ],
)
def test_a_wrong_request_is_refused(path, options, message):
    with pytest.raises(TracelabError, match=message):
        wikitext(**{"source": path, **options})


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "test.parquet").write_bytes(b"PAR1\xff\xfe")
    with pytest.raises(TracelabError, match=r"test.parquet' is not a text file"):
        wikitext(source=tmp_path / "test.parquet")
