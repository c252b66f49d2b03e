"""Folders of jobs go to the collections that they are of."""

from __future__ import annotations

import pytest
import typer

from hashlight.engine.service.asking.beside import Beside
from hashlight.pipelines.cli.using.serve import Shown


def test_each_folder_goes_to_its_collection():
    shown = Shown(duplicates=["b=found", "a=s3://bucket/found"], rejects=["a=codes"])
    assert shown.of(["a", "b"]) == {
        "a": Beside(duplicates="s3://bucket/found", codes="codes"),
        "b": Beside(duplicates="found"),
    }
    assert Shown(duplicates=["found"]).of(["photos"]) == {"photos": Beside(duplicates="found")}
    assert Shown().of(["a", "b"]) == {"a": Beside(), "b": Beside()}


@pytest.mark.parametrize(
    ("given", "names", "message"),
    [
        (["found"], ["a", "b"], "--duplicates found: name the collection, as in a=found"),
        (["c=found"], ["a", "b"], "there is no collection c; there are: a, b"),
        (["a=one", "a=two"], ["a", "b"], "is given twice for a"),
    ],
)
def test_a_folder_of_no_collection_is_refused(given, names, message):
    with pytest.raises(typer.BadParameter, match=message):
        Shown(duplicates=given).of(names)
