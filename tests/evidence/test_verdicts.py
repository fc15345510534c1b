"""gpt-4o's recorded verdicts become labels of the quality that their README states."""

import sys
from pathlib import Path

import pytest

from dmoerm.data.readers import read_groups
from dmoerm.labeling.quality import label_quality
from dmoerm.labels import read_labels
from evidence import verdicts


def test_gpt4os_verdicts_on_real_pairs(human_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overall, one order agrees with people on 0.60 and 0.53, both orders on 0.62 and 0.54."""
    pairs, out = human_data / "cragc_pairs.jsonl", tmp_path / "labels.parquet"
    monkeypatch.setattr(sys, "argv", ["", str(pairs), str(human_data / "cragc_llm_verdicts.jsonl"), str(out)])
    verdicts.main()
    results = {(q.judge, q.capability): q for q in label_quality(read_labels(out), read_groups(pairs).groups)}
    for mode, one, both in ("combined", 0.60, 0.62), ("individual", 0.53, 0.54):
        overall = results[f"gpt-4o/{mode}", "overall"]
        assert (overall.agreement_one, overall.agreement_both) == (
            pytest.approx(one, abs=0.02),
            pytest.approx(both, abs=0.02),
        )
    assert results["gpt-4o/combined", "coverage_deep"].shown_first == pytest.approx(0.65, abs=0.02)
