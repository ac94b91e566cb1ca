import itertools

import pytest
import wandb
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import claims, default, quick, record, speedrun, study
from mnist_flax.cli import arguments
from mnist_flax.errors import UserError
from mnist_flax.run import fields

BAD = {
    "seed": [-1, 2**32, 1.5, True],
    "num_epochs": [0, -3],
    "batch_size": [0, 60_001],
    "label_smoothing": [-0.1, 1.0],
    "dataset.name": ["cifar10", ""],
    "dataset.source": ["download"],
    "dataset.data_dir": [3],
    "dataset.manual_dir": ["no/such/folder"],
    "dataset.validation_size": [-1, 60_000],
    "augment.enabled": [1],
    "augment.rotation": [-15.0, 181.0, float("nan")],
    "augment.translation": [-0.1, 1.5],
    "augment.scale": [(1.2, 0.8), (0.0, 1.0), (1.0,), (-1.0, 1.0), "ab"],
    "augment.interpolation": ["bicubic"],
    "model.channels": [(), ((),), ((36, 0),), (36, 36), "36"],
    "model.kernel_sizes": [((5, 5), (3, 3)), ((5, 25), (3, 3), (1,)), ((28, 1), (3, 3), (1,))],
    "model.downsample": ["pool"],
    "model.norm": ["instance", None],
    "model.norm_position": ["middle"],
    "model.num_groups": [0],
    "model.padding": ["valid"],
    "model.dtype": ["float16"],
    "optimizer.learning_rate": [-0.003, 0.0, float("inf"), "fast"],
    "optimizer.schedule": ["constant"],
    "optimizer.learning_rate_decay": [0.0, 1.01],
    "optimizer.warmup": [-0.1, 1.0],
    "optimizer.b1": [1.0],
    "optimizer.b2": [-0.1],
    "optimizer.eps": [0.0],
    "optimizer.weight_decay": [-1e-5],
    "optimizer.decoupled": ["yes"],
    "optimizer.ema_decay": [1.0, -0.1],
    "evaluation.num_views": [0, 2.0],
    "evaluation.strength": [-0.1, 1.1],
    "checkpoint.keep": [0, 2.5],
    "wandb.mode": ["on"],
    "wandb.project": ["", "a/b", "100%", "a" * 129, "a\nb", " ", "\udcff"],
    "wandb.entity": [3, "team/project", "a" * 129],
    "wandb.group": [None, "a" * 129, "a\x00"],
    "wandb.job_type": [1, "a\nb"],
    "wandb.notes": [1],
    "wandb.log_model": ["latest", ""],
    "wandb.tags": [(1, 2), ("a" * 65,), ("x," + "a" * 65,), ("a\nb",), "ab"],
    "study.num_seeds": [0, 2.5],
    "study.num_together": [-1],
    "study.num_final_epochs": [0],
    "study.ensemble_size": [0],
}
BAD_PAIRS = [(name, value) for name, values in BAD.items() for value in values]


def set_field(config, name, value):
    with config.ignore_type():
        *groups, last = name.split(".")
        for group in groups:
            config = config[group]
        config[last] = value


RECIPES = [claims, default, quick, record, speedrun, study]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_recipes_are_accepted(recipe):
    fields.check(recipe.get_config())


def test_every_field_has_a_bad_value_here():
    assert set(BAD) == set(fields.FIELDS)


@pytest.mark.parametrize(("name", "value"), BAD_PAIRS, ids=[f"{n}={v!r}" for n, v in BAD_PAIRS])
def test_bad_values_are_refused_by_name(name, value):
    config = default.get_config()
    set_field(config, name, value)
    with pytest.raises(UserError) as error:
        fields.check(config)
    message = str(error.value)
    assert f"config.{name}={value!r}" in message
    assert "allowed: " in message
    assert "\n" not in message


WANDB_TEXTS = st.text("aZ1é ,/\\#?%:\n\udcff", max_size=9) | st.integers(0, 140).map("a".__mul__)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(WANDB_TEXTS, st.booleans())
def test_what_is_allowed_is_what_wandb_takes(text, is_tag):
    """W&B's own checks accept the text, and it can be encoded; this needs no network."""
    if is_tag and fields.FIELDS["wandb.tags"].accepts((text,)):
        tags = [tag.strip() for tag in text.split(",")]
        wandb.Settings(run_tags=list(filter(None, tags))).to_proto()
    if not is_tag and fields.FIELDS["wandb.project"].accepts(text):
        wandb.Settings(project=text).to_proto()


def test_channels_without_kernels_are_refused():
    config = default.get_config()
    config.model.channels = ((36, 36), (64, 128))
    with pytest.raises(UserError) as error:
        fields.check(config)
    assert str(error.value) == (
        "config.model.kernel_sizes=((5, 5), (3, 3), (1,)) is not allowed; allowed: one kernel for "
        "each of channels=((36, 36), (64, 128))"
    )


def test_sample_has_fewer_images():
    config = default.get_config()
    config.dataset.source = "sample"
    config.batch_size = 4_000
    fields.check(config)
    config.dataset.validation_size = 1
    with pytest.raises(UserError, match=r"config.batch_size=4000 .* at most the 3,999"):
        fields.check(config)


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist"])
def test_sample_is_of_mnist_only(name):
    config = default.get_config()
    config.dataset.source = "sample"
    config.dataset.name = name
    with pytest.raises(UserError, match=r"config.dataset.source='sample'"):
        fields.check(config)


def test_groups_must_divide_channels():
    config = default.get_config()
    config.model.norm = "group"
    config.model.num_groups = 5
    with pytest.raises(UserError, match=r"config.model.num_groups=5 .* divisor of 36"):
        fields.check(config)


def test_missing_and_unknown_fields():
    config = default.get_config()
    del config.optimizer.eps
    with pytest.raises(UserError, match=r"config.optimizer.eps is missing"):
        fields.check(config)
    config = default.get_config()
    config.optimizer.momentum = 0.9
    with pytest.raises(
        UserError, match=r"config.optimizer.momentum is not a field; .*learning_rate"
    ):
        fields.check(config)


@pytest.mark.parametrize(
    ("padding", "first", "accepted"),
    [("VALID", 28, False), ("VALID", 23, True), ("VALID", 25, False), ("SAME", 28, True)],
)
def test_feature_maps_are_followed_to_the_end(padding, first, accepted):
    """By hand: 28 - 23 + 1 = 6; a 2x2 kernel leaves 5, downsampling 2, another 2x2 kernel 1."""
    config = default.get_config()
    config.model.padding = padding
    config.model.channels = ((8, 8), (8,))
    config.model.kernel_sizes = ((first, 2), (2,))
    if accepted:
        fields.check(config)
    else:
        with pytest.raises(UserError, match=r"config.model.kernel_sizes"):
            fields.check(config)


@pytest.mark.parametrize(
    ("argument", "field"),
    [
        ("--config.model.nrom=layer", "model.nrom"),
        ("--config.lr=0.1", "lr"),
        ("-config.model=3", "model"),
        ("--noconfig.augment.on", "augment.on"),
        ("--config.model.\n=3", r"'model\.\\n'"),
    ],
)
def test_unknown_overrides(argument, field):
    guess = r"(did you mean --config\.[a-z_.]+\? )?"
    with pytest.raises(UserError, match=f"^config.{field} is not a field; {guess}allowed: "):
        arguments._check_overrides([argument])


def test_known_overrides():
    arguments._check_overrides(["main.py", "--config=configs/default.py", "--workdir=x"])
    arguments._check_overrides([f"--config.{name}=1" for name in fields.FIELDS])


def test_default_is_the_original():
    """The default recipe has every value of the PyTorch original."""
    config = default.get_config()
    flat = dict(itertools.chain(config.model.items(), config.optimizer.items()))
    assert (config.num_epochs, config.batch_size) == (20, 2048)
    assert flat["channels"] == ((36, 36), (64, 128), (256,))
    assert flat["kernel_sizes"] == ((5, 5), (3, 3), (1,))
    assert (flat["norm"], flat["norm_position"], flat["downsample"]) == (
        "batch",
        "before",
        "strided",
    )
    assert (flat["learning_rate"], flat["learning_rate_decay"]) == (0.003, 0.99)
    assert (flat["b1"], flat["b2"], flat["eps"], flat["weight_decay"]) == (0.9, 0.999, 1e-8, 5e-5)
    assert not flat["decoupled"]
    assert (config.augment.rotation, config.augment.translation) == (15, 0.15)
    assert config.augment.scale == (0.8, 1.2)
    assert config.augment.interpolation == "nearest"
