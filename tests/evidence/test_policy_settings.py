"""Settings of policy optimization: what is refused, and that all are told."""

import pytest
from pydantic import ValidationError

from evidence.rl import PolicyConfig, RLConfig


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (RLConfig, {"generations": 1}),
        (RLConfig, {"algorithm": "dpo"}),
        (RLConfig, {"beta": -0.1}),
        (RLConfig, {"beta": float("nan")}),
        (RLConfig, {"temperature": float("inf")}),
        (RLConfig, {"learning_rate": 1e38}),
        (PolicyConfig, {"learning_rate": 1e38}),
        (RLConfig, {"step": 3}),
        (PolicyConfig, {"hidden_size": 30, "heads": 4, "key_value_heads": 4}),
        (PolicyConfig, {"heads": 8, "key_value_heads": 3}),
        (PolicyConfig, {"vocabulary": 100}),
    ],
)
def test_invalid_settings_are_refused(kind, changes):
    with pytest.raises(ValidationError):
        kind.model_validate(changes)


@pytest.mark.parametrize("kind", [RLConfig, PolicyConfig])
def test_every_field_is_documented(kind):
    assert all(field.description for field in kind.model_fields.values())


def test_other_settings_have_another_key():
    assert PolicyConfig().key == PolicyConfig().key != PolicyConfig(seed=1).key
