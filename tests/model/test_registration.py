"""`AutoModelForSequenceClassification` knows a DMoERM's folder after `import dmoerm`, in whatever order things load."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from dmoerm.model import DMoERM, DMoERMConfig

LOAD = """
model = AutoModelForSequenceClassification.from_pretrained({path!r})
ids = model.tokenizer({text!r}, return_tensors="pt")
print(type(model).__name__, model.config.num_labels, *model(**ids).logits.shape, model(**ids).logits.item())
"""
AUTO = "from transformers import AutoModelForSequenceClassification\n"
ORDERS = {
    "dmoerm first": "import dmoerm\n" + AUTO,
    "transformers first": AUTO + "import dmoerm\n",
    "transformers by halves": "import transformers, dmoerm\n" + AUTO,
    "the model first": "from dmoerm.model import DMoERM\n" + AUTO,
    "peft first": "import peft, dmoerm\n" + AUTO,
}


def fresh(code: str) -> str:
    """Return the output of a new Python process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def conversation(model: DMoERM, prompt: str, response: str) -> str:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return model.tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_load_a_folder_in_a_fresh_process(trained_run: Any, order: str) -> None:
    model: DMoERM = trained_run.model
    path = str(trained_run.folder / "model")
    printed = fresh(ORDERS[order] + LOAD.format(path=path, text=conversation(model, "Hi", "Hello there."))).split()
    assert printed[:4] == ["DMoERM", "1", "1", "1"]
    assert float(printed[4]) == pytest.approx(model.score("Hi", ["Hello there."])[0].reward, abs=1e-4)


def test_importing_dmoerm_alone_does_not_load_torch() -> None:
    assert fresh("import dmoerm, sys\nprint('torch' in sys.modules, 'transformers' in sys.modules)") == "False False\n"


def test_the_auto_classes_know_dmoerm_here() -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.for_model("dmoerm")
    assert isinstance(config, DMoERMConfig)
    assert AutoModelForSequenceClassification._model_mapping[DMoERMConfig] is DMoERM
