"""What each class of product may put out."""

from __future__ import annotations

import pytest

from qinjing.errors import ConfigError
from qinjing.report.product_class import CLASSES, KINDS, allowed, require

# By hand, from the three classes of the survey's section 2.2.1.
TABLE = {
    "tool": {"annotation", "picture"},
    "analysis": {"annotation", "picture", "measurement", "change"},
    "diagnosis": {"annotation", "picture", "measurement", "change", "finding"},
}


def test_the_table():
    assert set(CLASSES) == set(TABLE) and set(KINDS) == TABLE["diagnosis"]
    for product_class, kinds in TABLE.items():
        for kind in KINDS:
            assert allowed(kind, product_class) is (kind in kinds)
            if kind in kinds:
                require(kind, product_class)
            else:
                with pytest.raises(ConfigError, match=f"class {product_class} may put out, got a"):
                    require(kind, product_class)


def test_the_refusal_says_which_class_it_needs():
    with pytest.raises(ConfigError, match="needs the class analysis"):
        require("measurement", "tool")
    with pytest.raises(ConfigError, match="needs the class diagnosis"):
        require("finding", "analysis")
    for words in (("score", "tool"), ("finding", "Diagnosis"), ("finding", "")):
        with pytest.raises(ConfigError, match="one of"):
            allowed(*words)
