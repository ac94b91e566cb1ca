import pytest

from configs import default
from mnist_flax.errors import UserError
from mnist_flax.study.recipes import recipes


def with_variants(**variants):
    config = default.get_config()
    config.study.variants = variants
    return config


def test_recipes_of_a_study():
    config = with_variants(
        plain={"augment": {"enabled": False}},
        constant={"optimizer": {"learning_rate_decay": 1, "weight_decay": 0.0}},
    )
    found = recipes(config)
    assert list(found) == ["base", "constant", "plain"]
    for name, recipe in found.items():
        assert recipe.augment.enabled == (name != "plain")
        assert recipe.optimizer.learning_rate_decay == (1 if name == "constant" else 0.99)
        assert not recipe.study.variants
    assert len(config.study.variants) == 2


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        (
            "a",
            {"model": {"nrom": "layer"}},
            "config.model.nrom is not a field; did you mean --config.model.norm? ",
        ),
        ("a", {"model": {"norm": "lair"}}, "config.model.norm='lair' is not allowed; allowed: one"),
        ("a", {"model": {"padding": "SAME", "num_groups": 5, "norm": "group"}}, "a divisor of 36"),
        ("a", {"seed": 3}, "config.seed=3 is not allowed; allowed: the same in all variants"),
        ("a", {"dataset": {"name": "kmnist"}}, "allowed: the same in all variants"),
        ("a", {}, "allowed: the fields that differ"),
        ("a", 3, "allowed: the fields that differ"),
        ("base", {"num_epochs": 3}, "allowed: any name except 'base'"),
        ("a/b", {"num_epochs": 3}, "allowed: any name except 'base'"),
        ("", {"num_epochs": 3}, "allowed: any name except 'base'"),
    ],
)
def test_bad_variants_are_refused_by_name(name, overrides, says):
    with pytest.raises(UserError) as error:
        recipes(with_variants(**{name: overrides}))
    message = str(error.value)
    assert message.startswith(f"config.study.variants[{name!r}]") and says in message
    assert "\n" not in message


def test_variants_that_are_no_group_are_refused():
    config = default.get_config()
    del config.study.variants
    config.study.variants = ("layer norm",)
    with pytest.raises(UserError, match=r"config.study.variants=.* a name and the fields"):
        recipes(config)
