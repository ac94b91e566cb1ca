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
        ("a", {"model": {"nrom": "layer"}}, "config.model.nrom"),
        ("a", {"model": {"norm": "lair"}}, "config.model.norm must be one of batch"),
        ("a", {"model": {"padding": "SAME", "num_groups": 5, "norm": "group"}}, "a divisor of 36"),
        ("a", {"seed": 3}, "config.seed must be the same in all variants, got 3"),
        ("a", {"dataset": {"name": "kmnist"}}, "must be the same in all variants"),
        ("a", {}, "must hold the fields that differ"),
        ("a", 3, "must hold the fields that differ"),
        ("base", {"num_epochs": 3}, "that is not 'base'"),
        ("a/b", {"num_epochs": 3}, "that is not 'base'"),
        ("", {"num_epochs": 3}, "that is not 'base'"),
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
    with pytest.raises(UserError, match=r"config\.study\.variants must be the fields that differ"):
        recipes(config)
