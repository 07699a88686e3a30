"""Config, registry, tokens: what every other floor stands on."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch

from fusetune.config import build, digest
from fusetune.errors import FusetuneError
from fusetune.registry import Registry
from fusetune.tokens import pad


@dataclass(frozen=True)
class Inner:
    rank: int = 1


@dataclass(frozen=True)
class Outer:
    name: str
    rate: float = 0.1
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    named: Mapping[str, Inner] | None = None


def test_nested_settings_are_built():
    made = build(Outer, {"name": "x", "rate": "1e-3", "many": [{"rank": 2}], "named": {"a": {"rank": 3}}}, "outer")
    assert made == Outer("x", 1e-3, Inner(), (Inner(2),), {"a": Inner(3)})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "x", "rat": 1.0}, "outer: unknown key 'rat'. Did you mean 'rate'"),
        ({"name": "x", "many": [{"rnk": 1}]}, r"outer.many\[0\]: unknown key 'rnk'. Did you mean 'rank'"),
        ({"name": "x", "inner": {"rank": "four"}}, "outer.inner.rank: expected int, found 'four'"),
        ({"name": 3}, "outer.name: expected str, found 3"),
        ({"rate": 0.1}, "outer: the required key 'name' is not there"),
        ({"name": "x", "rate": "fast"}, "outer.rate: expected float, found 'fast'"),
    ],
)
def test_a_wrong_setting_is_named(values, message):
    with pytest.raises(FusetuneError, match=message):
        build(Outer, values, "outer")


def test_digest_ignores_the_order_of_keys_only():
    assert digest({"a": 1, "b": (2, 3)}) == digest({"b": [2, 3], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_registry_names_choices_and_refuses_a_second_owner():
    registry = Registry("fruits", {"apple": "math:pi"})
    with pytest.raises(FusetuneError, match="'pear' is unknown. Known: apple"):
        registry.get("pear")
    with pytest.raises(FusetuneError, match="registered twice"):
        registry.register("apple", "math:e")
    assert registry.get("apple") == pytest.approx(3.14159, abs=1e-5)


def test_ragged_and_padded_are_inverse_and_pooling_ignores_padding():
    rows = [torch.randn(3, 4), torch.randn(0, 4), torch.randn(5, 4)]
    tokens = pad(rows)
    assert tokens.values.shape == (3, 5, 4)
    for row, back in zip(rows, tokens.ragged(), strict=True):
        assert torch.equal(row, back)
    torch.testing.assert_close(tokens.pooled()[0], rows[0].mean(0))
    assert tokens.pooled()[1].abs().sum() == 0
