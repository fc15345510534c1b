"""Settings: shipped configs, overrides, `extends`, and what is refused."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from dmoerm.config import Config, dump_config, load_config, shipped_configs
from dmoerm.errors import ConfigError


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_config_loads_and_survives_a_round_trip(name, tmp_path):
    config = load_config(name)
    file = tmp_path / "resolved.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file) == config


def test_shipped_configs_are_the_named_recipes():
    assert set(shipped_configs()) >= {"paper", "paper-published", "fast", "finetune", "frozen", "human", "demo"}


def test_every_field_is_documented():
    def undocumented(model):
        for name, field in model.model_fields.items():
            if isinstance(field.default, BaseModel):
                yield from undocumented(type(field.default))
            elif not field.description:
                yield f"{model.__name__}.{name}"

    assert list(undocumented(Config)) == []


def test_a_data_file_in_place_of_a_config_is_named(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "Why?"}\n')
    with pytest.raises(ConfigError, match=r"mine\.jsonl: is a data file, and not a config; propose .*dmoerm init"):
        load_config(tmp_path / "mine.jsonl")


def test_a_setting_that_is_given_twice_is_an_error(tmp_path):
    (tmp_path / "mine.yaml").write_text("phase2:\n  l2: 0.9\nphase1:\n  l2: 1\nphase2:\n  epochs: 1\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml:5: .*the key 'phase2' is given twice"):
        load_config(tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config("finetune", ["phase1={l2: 1, l2: 2}"])
    (tmp_path / "merged.yaml").write_text(
        "phase0: &first {l2: 0.9, epochs: 2}\nphase1: &second {<<: *first, epochs: 1}\nphase2: {<<: *second, l2: 1}\n"
    )
    assert load_config(tmp_path / "merged.yaml").phase2.epochs == 1, "a merged mapping may be changed, and merged again"


def test_an_override_changes_one_field_alone():
    config = load_config("paper", ["phase2.lora.rank=4", "data.files=[a.jsonl, b.jsonl]"])
    assert config.phase2.lora.rank == 4
    assert config.data.files == ("a.jsonl", "b.jsonl")
    assert config.phase2.l2 == load_config("paper").phase2.l2


def test_extends_fills_in_what_the_file_does_not_say(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: paper\nphase2: {l2: 0.9}\n")
    config, base = load_config(tmp_path / "mine.yaml"), load_config("paper")
    assert config.phase2.l2 == 0.9
    assert config.phase2.epochs == base.phase2.epochs
    assert config.phase1 == base.phase1


def test_what_a_file_extends_is_beside_that_file(tmp_path):
    """Also two files up: `common.yaml` of the folder of `base.yaml`, not that of the first file."""
    files = {"inner/a": "../base.yaml", "base": "common.yaml", "common": "paper", "inner/common": "paper"}
    (tmp_path / "inner").mkdir()
    for name, base in files.items():
        more = {"common": "phase2: {l2: 0.9}", "inner/common": "phase2: {l2: 0.1}"}.get(name, "")
        (tmp_path / f"{name}.yaml").write_text(f"extends: {base}\n{more}\n")
    assert load_config(tmp_path / "inner" / "a.yaml").phase2.l2 == 0.9


def test_files_that_extend_each_other_are_an_error(tmp_path):
    for name, base in (("a", "b.yaml"), ("b", "../x/a.yaml"), ("self", "self.yaml")):
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / f"{name}.yaml").write_text(f"extends: {base}\n")
    with pytest.raises(ConfigError, match=r"b\.yaml: extends: files extend .* in a circle .*a\.yaml → .*b\.yaml"):
        load_config(tmp_path / "x" / "a.yaml")
    with pytest.raises(ConfigError, match=r"circle .*self\.yaml → .*self\.yaml\)"):
        load_config(tmp_path / "x" / "self.yaml")


def test_another_recipe_can_be_extended_from_the_command_line():
    assert load_config("human", ["extends=finetune"]).base == "full"
    assert load_config("human", ["extends=finetune"]).data.files == load_config("human").data.files


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["phase2.lora.rank=-1"], "phase2.lora.rank"),
        (["phase2"], "a.b=value"),
        (["base=half"], "base: must be 'full', 'lora' or 'frozen'"),
        (["gradient_checkpointing=offlaod"], r"gradient_checkpointing: must be False, True or 'offload' \(got 'offl"),
        (["phase1.l2=abc"], r"phase1.l2: must be a number \(got 'abc'"),
        (["phase1.fit=often"], r"phase1.fit: must be 'exact' or 'trained' \(got 'often'"),
        (["router.kind=mine"], "router.kind: must be 'trunk' or 'own'"),
        (["data.files=[1]"], "data.files.0: must be"),
        (["backbone.branch_layer=0"], "router.kind"),
        (["data.test_fraction=nan"], "data.test_fraction"),
        (["phase1.learning_rate=1e38"], "phase1.learning_rate: must be at most 1e.30"),
        (["phase0.epochs=.inf"], "phase0.epochs"),
        (["head.hidden=4"], "head: unknown setting"),
        (["training.metric_for_best_model=[1"], "YAML"),
        (["router.l2=0.1"], "router.l2: unknown setting"),
        (["data.filez=[]"], r"data.filez: unknown setting; did you mean data.files\? \(got"),
        (["phase2.lora.rnak=3"], r"phase2.lora.rnak: unknown setting; did you mean phase2.lora.rank\?"),
        (["phase0.epoch=1"], r"unknown setting; did you mean phase0.epochs\?"),
        (["router.epochs=1"], "router.epochs: needs router.kind: own"),
        (["zzz=1"], r"zzz: unknown setting \(got 1\)"),
        (["base=frozen"], "phase0.fit is trained but base is frozen: .*set phase0.fit to exact"),
        (["base=frozen", "phase0.fit=exact"], "phase1.fit is trained but base is frozen"),
        (["extends=finetune", "phase1.phase1_fraction=0.5"], "phase3.fit is exact, which weights held-out scores"),
        (["extends=finetune", "phase3.base_scores=[all_labels]"], "all_labels, which needs"),
        (["phase2.lora.rank=0"], "phase2.lora.rank is 0: .*set phase2.fit to exact"),
        (["base_lora.rank=2"], "base_lora has no effect"),
        (["phase3.inputs=scores", "phase3.hidden=8"], "phase3.hidden has no effect while phase3.inputs is scores"),
        (["extends=frozen", "phase3.dropout=0.2"], "phase3.dropout: needs phase3.fit: trained"),
        (["extends=paper-published", "phase3.base_scores=[general]"], "phase3.base_scores has no effect"),
        (["data.format=trl"], "data.format has no effect while data.files is empty"),
        (["data.soft_labels=false"], "data.soft_labels has no effect while data.capability_labels is empty"),
        (["extends=frozen", "training.warmup=0.2"], "training.warmup has no effect while every step is exact"),
    ],
)
def test_a_wrong_setting_is_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


@pytest.mark.parametrize("text", ["- a list", "a: [", "unknown_field: 1", "extends: nowhere"])
def test_a_wrong_file_is_named(text, tmp_path):
    file = Path(tmp_path / "wrong.yaml")
    file.write_text(text)
    with pytest.raises(ConfigError):
        load_config(file)


def test_a_step_of_another_type_keeps_what_both_types_have():
    exact = load_config(None, ["base=frozen", "phase0.fit=exact", "phase1.fit=exact"]).phase0
    assert (exact.fit, exact.model_fields_set) == ("exact", {"fit"})
    trained = load_config("frozen", ["phase3.inputs=both", "phase3.fit=trained", "backbone={num_layers: 2}"]).phase3
    assert (trained.inputs, trained.base_scores) == ("both", ("per_task", "general", "all_labels"))


def test_paper_has_the_published_form():
    for config in map(load_config, ("paper", "paper-published")):
        assert (config.base, config.backbone.branch_layer, config.router.kind) == ("full", 0, "own")
        assert config.phase2.lora.targets == ("q_proj", "v_proj")
        assert config.phase3.fit == "trained"
        assert config.phase3.inputs != "scores"  # there is an MLP over embeddings
