"""Which names of folders are classes, and which are not: an archive by date is no set of classes."""

from __future__ import annotations

import pytest

from hashlight.pipelines.corpora.labels import what_names_are

CLASSES = [
    ["cat", "dog"],
    ["n01440764", "n01443537", "n01484850"],
    ["001.Black_footed_Albatross", "002.Laysan_Albatross"],
    ["c0", "c1", "c2"],
    ["s1", "s2", "s40"],
    ["aeroplane", "bus", "car", "train"],  # the vehicle
    ["T-shirt", "Ankle boot", "Dress"],
    ["may", "rose", "tulip"],
    ["cafe", "face"],
    ["Marigold", "Junebug", "Mayfly"],
]
OTHERS = {
    "dates": [
        ["2019", "2020", "2021"],
        ["2019", "Screenshots", "WhatsApp"],
        ["2019-07-14 Italy", "Home"],
        ["Italy 2019", "Spain 2021", "cats"],
        ["20190714", "20200101"],
        ["14.07.2019", "15.07.2019"],
        ["IMG-20190714", "others"],
        ["January", "february", "MARCH"],
        ["01-Jan", "02-Feb"],
        ["Summer", "Winter"],
    ],
    "splits": [
        ["train", "test"],
        ["train2017", "val2017"],
        ["training", "validation", "README"],
        ["images"],
        ["gallery", "query"],
        ["labeled", "unlabeled"],
    ],
    "numbers": [
        ["0", "1", "9"],
        ["00001", "00002"],
        ["part-0001", "part-0002"],
        ["batch1", "batch2", "extra"],
        ["100CANON", "101CANON"],
        ["100APPLE", "101APPLE"],
    ],
    "hashes": [
        ["0a", "3f", "c4", "de"],
        ["a3f81b2c9d0e4f56", "0123456789abcdef"],
        ["123e4567-e89b-12d3-a456-426614174000", "x"],
        ["dQw4w9WgXcQ_12345", "aBcDeFgHiJk-67890"],
    ],
    "a single folder": [["cats"]],
}


@pytest.mark.parametrize("names", CLASSES, ids=str)
def test_classes_look_like_classes(names):
    assert what_names_are(names) == "classes"


@pytest.mark.parametrize(("kind", "names"), [(kind, names) for kind, some in OTHERS.items() for names in some], ids=str)
def test_other_names_look_like_what_they_are(kind, names):
    assert what_names_are(names) == kind
    assert what_names_are(reversed(names)) == kind
