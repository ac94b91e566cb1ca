import pytest
import wandb
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import claims, default, quick, record, speedrun, study
from mnist_flax.errors import UserError
from mnist_flax.run import fields
from tests.runs import ROOT

HUGE = 10**400  # no float can hold it
BAD = {
    "seed": [-1, 2**32, True],
    "num_epochs": [0],
    "batch_size": [0, 60_001],
    "label_smoothing": [-0.1, 1.0],
    "dataset.name": ["cifar10"],
    "dataset.source": ["download"],
    "dataset.data_dir": [3],
    "dataset.manual_dir": [None],
    "dataset.validation_size": [-1, 60_000],
    "augment.enabled": [1],
    "augment.rotation": [181.0, float("nan")],
    "augment.translation": [-0.1, 1.5],
    "augment.scale": [(1.2, 0.8), (0.0, 1.0), (1.0,), "ab", (1, HUGE)],
    "augment.interpolation": ["bicubic"],
    "model.channels": [(), ((),), ((36, 0),), (36, 36)],
    "model.kernel_sizes": [((5, 5), (3, 3)), ((5, 25), (3, 3), (1,))],
    "model.downsample": ["pool"],
    "model.norm": ["instance", None],
    "model.norm_position": ["middle"],
    "model.num_groups": [0],
    "model.padding": ["valid"],
    "model.dtype": ["float16"],
    "optimizer.learning_rate": [0.0, float("inf"), "fast"],
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
    "wandb.project": ["", "100%", "a" * 129, "a\nb"],
    "wandb.entity": [3, "team/project"],
    "wandb.group": [None, "a\x00"],
    "wandb.job_type": [1],
    "wandb.notes": [1],
    "wandb.log_model": ["latest"],
    "wandb.tags": [(1, 2), ("x," + "a" * 65,), ("a\nb",), "ab"],
    "study.num_seeds": [0, 2.5],
    "study.num_together": [-1],
    "study.num_final_epochs": [0],
}


def changed(values):
    """Returns the default configuration with other values."""
    config = default.get_config()
    with config.ignore_type():
        for name, value in values.items():
            *groups, last = name.split(".")
            group = config
            for part in groups:
                group = group[part]
            group[last] = value
    return config


def refusal(config):
    """Returns the error of a bad configuration."""
    with pytest.raises(UserError) as error:
        fields.check(config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "recipe", [claims, default, quick, record, speedrun, study], ids=lambda recipe: recipe.__name__
)
def test_recipes_are_accepted(recipe):
    fields.check(recipe.get_config())


def test_every_field_has_a_bad_value_here():
    assert set(BAD) == set(fields.FIELDS)


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused_by_name(name):
    for value in BAD[name]:
        message = refusal(changed({name: value}))
        assert message.startswith(f"config.{name} must be ") and f"got {value!r}" in message


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.text("aZ1é ,/\\#?%:\n\udcff", max_size=9) | st.integers(0, 140).map("a".__mul__),
    st.booleans(),
)
def test_what_is_allowed_is_what_wandb_takes(text, is_tag):
    """W&B's own checks accept the text, and it can be encoded; this needs no network."""
    if is_tag and fields.FIELDS["wandb.tags"].accepts((text,)):
        tags = [tag.strip() for tag in text.split(",")]
        wandb.Settings(run_tags=list(filter(None, tags))).to_proto()
    if not is_tag and fields.FIELDS["wandb.project"].accepts(text):
        wandb.Settings(project=text).to_proto()


@pytest.mark.parametrize(
    ("values", "named", "allowed"),
    [
        ({"model.channels": ((36, 36), (64, 128))}, "model.kernel_sizes", "((36, 36), (64, 128))"),
        ({"model.norm": "group", "model.num_groups": 5}, "model.num_groups", "divisor of 36"),
        ({"dataset.source": "sample", "batch_size": 4_001}, "batch_size", "4,000"),
        (
            {"dataset.source": "sample", "batch_size": 4_000, "dataset.validation_size": 1},
            "batch_size",
            "3,999",
        ),
        ({"dataset.source": "sample", "dataset.name": "kmnist"}, "dataset.source", "tfds"),
        ({"dataset.source": "sample", "dataset.manual_dir": "/"}, "dataset.manual_dir", "empty"),
    ],
)
def test_values_that_do_not_fit_together(values, named, allowed):
    message = refusal(changed(values))
    assert message.startswith(f"config.{named} must be ") and allowed in message


def test_missing_and_unknown_fields():
    config = default.get_config()
    del config.optimizer.eps
    assert refusal(config).startswith("config.optimizer.eps is missing")
    message = refusal(changed({"model.nrom": "layer"}))
    assert message.startswith("config.model.nrom ") and "config.model.norm?" in message


def test_default_recipe_is_the_original():
    """The default recipe has every value of the PyTorch original."""
    config = default.get_config()
    model, optimizer, augment = config.model, config.optimizer, config.augment
    assert (config.num_epochs, config.batch_size) == (20, 2048)
    assert model.channels == ((36, 36), (64, 128), (256,))
    assert model.kernel_sizes == ((5, 5), (3, 3), (1,))
    assert (model.norm, model.norm_position) == ("batch", "before")
    assert (model.downsample, model.padding) == ("strided", "VALID")
    assert (optimizer.learning_rate, optimizer.learning_rate_decay) == (0.003, 0.99)
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.999, 1e-8)
    assert (optimizer.weight_decay, optimizer.decoupled) == (5e-5, False)
    assert (augment.rotation, augment.translation, augment.scale) == (15, 0.15, (0.8, 1.2))
    assert augment.interpolation == "nearest"


def test_sweep_names_real_fields():
    sweep = yaml.safe_load((ROOT / "configs" / "wandb_sweep.yaml").read_text())
    assert sweep["program"] == "main.py"
    assert sweep["metric"]["name"] in {"test/accuracy", "final_test_accuracy"}
    names = {name.removeprefix("config.") for name in sweep["parameters"]}
    assert names >= {"model.norm", "model.downsample", "augment.enabled"}
    for name, parameter in sweep["parameters"].items():
        field = fields.FIELDS[name.removeprefix("config.")]
        assert all(map(field.accepts, parameter.get("values", [parameter.get("value")])))
