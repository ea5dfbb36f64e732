"""Which cells are held out: by name, by value, by column."""

import numpy as np
import pandas as pd
import pytest

from mdsc.errors import UserError
from mdsc.prep.held_out import SplitCheck, SplitRule, name_hash


def cells(num_cells: int = 4000) -> pd.DataFrame:
    obs = {"donor": np.resize(["d1", "d2", "d3"], num_cells), "line": np.resize(["y", "y", "x"], num_cells)}
    return pd.DataFrame(obs, index=[f"c{i}" for i in range(num_cells)])


def test_a_share_is_chosen_by_name_alone():
    obs, rule = cells(), SplitRule(fraction=0.2)
    splits = pd.Series(rule.splits(obs), obs.index)
    share = (splits == "heldout").mean()
    assert abs(share - 0.2) < 5 * np.sqrt(0.2 * 0.8 / len(obs))
    order = np.random.default_rng(0).permutation(len(obs))[:1000]
    assert rule.splits(obs.iloc[order]).tolist() == splits.iloc[order].tolist()
    more = SplitRule(fraction=0.3).splits(obs)
    assert (more[splits == "heldout"] == "heldout").all()
    # A promise to whoever adds cells next year.
    assert name_hash("c0") == pytest.approx(0.6216097599407502, abs=1e-15)


def test_values_of_a_column_are_held_out():
    obs = cells(6)
    splits = SplitRule(by=(("donor", "d3", "d1"),)).splits(obs)
    assert splits.tolist() == ["heldout", "train", "heldout"] * 2
    obs.loc["c0", "donor"] = None
    assert SplitRule(by=(("donor", "d1"),)).splits(obs).tolist() == [
        "train",
        "train",
        "train",
        "heldout",
        "train",
        "train",
    ]


def test_what_is_held_out_adds_up():
    obs = cells(300)
    share = SplitRule(fraction=0.2).splits(obs) == "heldout"
    rule = SplitRule(fraction=0.2, by=(("donor", "d1"), ("line", "x")))
    assert ((rule.splits(obs) == "heldout") == share | (obs["donor"] != "d2").to_numpy()).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fraction": 0.0}, "--heldout-fraction 0.0 is no share"),
        ({"fraction": 1.0}, "--heldout-fraction 1.0 is no share"),
        ({"fraction": float("nan")}, "is no share"),
        ({"fraction": 0.1, "column": "split"}, "--split-column and --heldout-fraction both"),
        ({"column": "split", "by": (("donor", "d1"),)}, "--split-column and --heldout-by both"),
        ({"by": (("donor",),)}, "--heldout-by donor lacks values"),
        ({"by": ((),)}, "--heldout-by lacks values"),
    ],
)
def test_wrong_flags(options, words):
    with pytest.raises(UserError, match=words):
        SplitRule(**options)


@pytest.mark.parametrize(
    ("by", "words"),
    [
        (
            (("donor", "d1"), ("donor", "d9")),
            r"no cell has 'd9' in column 'donor' .*: it has 'd1', 'd2', 'd3'",
        ),
        ((("donor", "d1", "d2", "d3"),), "--heldout-by donor holds out every cell"),
        ((("donor", "d1", "d2"), ("line", "x")), "--heldout-by donor, line holds out every cell"),
    ],
)
def test_wrong_values(by, words):
    check = SplitCheck(SplitRule(by=by))
    for part in (cells(2), cells(5)):
        check.add(part, "a.h5ad")
    with pytest.raises(UserError, match=words):
        check.finish()
