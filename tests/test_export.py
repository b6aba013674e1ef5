import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from kdsearch import commands, records
from kdsearch.errors import UserError
from tests import tiny

TEXTS = ["good1 word3 bad7", "word149 zebra good19!"]
IN_ANOTHER_PROCESS = """
import json, sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer
place, texts = sys.argv[1], json.loads(sys.argv[2])
model, tokenizer = AutoModelForSequenceClassification.from_pretrained(place), AutoTokenizer.from_pretrained(place)
batch = tokenizer(texts, padding=True, return_tensors="pt")
assert not any(name.startswith("kdsearch") for name in sys.modules)
print(json.dumps([model(**batch).logits.tolist(), batch["input_ids"].tolist(), model.config.vocab_size, model.config.pad_token_id]))
"""


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study file of a finished search over vocabularies."""
    folder = tmp_path_factory.mktemp("studied")
    spec = tiny.study(folder, tiny.SPELLED)
    content = tiny.space_content()
    content["architecture"]["vocabulary"] = {"choice": [None, 130, 200]}
    tiny.write_yaml(folder / "space.yaml", content)
    spec |= {"search": {"trials": 9, "startup_trials": 9, "baselines": False, "sampler": "random", "rungs": []}, "train": {"steps": 3}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDSEARCH_CACHE", str(folder / "cache"))
        commands.run_study(tiny.write_yaml(folder / "study.yaml", spec))
        yield folder


def test_a_study_over_vocabularies_searches_exports_and_loads(studied: Path) -> None:
    found = records.read(studied / "tiny" / "trials.jsonl")
    sizes = {record.candidate["architecture"].get("vocabulary") for record in found}
    assert sizes == {None, 130, 200}
    refused = [record for record in found if record.measurement.state == records.REFUSED]
    trained = [record for record in found if record.measurement.state == records.COMPLETE]
    assert {record.candidate["architecture"].get("vocabulary") for record in trained} == sizes
    assert len(refused) + len(trained) == len(found)
    assert all("compares token by token" in (record.measurement.reason or "") for record in refused)
    assert refused
    small = next(record for record in trained if record.candidate["architecture"].get("vocabulary") == 130)
    made = commands.train_pick(studied / "study.yaml", str(small.trial))
    assert (made.result["vocabulary"], made.result["parameters"]) == (130, small.measurement.parameters)
    assert f"| vocabulary | 130 | {len(tiny.SPELLED)} |" in (made.folder / "README.md").read_text()
    command = [sys.executable, "-I", "-c", IN_ANOTHER_PROCESS, str(made.folder), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=studied)
    logits, ids, size, pad = json.loads(done.stdout.splitlines()[-1])
    assert np.isfinite(logits).all()
    assert (size, pad) == (130, 0)
    assert max(map(max, ids)) < 130
    tokenizer = AutoTokenizer.from_pretrained(made.folder)
    assert [tokenizer.decode(row, skip_special_tokens=True) for row in ids] == [TEXTS[0], "word149 zebra good19!"]
    with pytest.raises(UserError, match="compares token by token"):
        commands.train_pick(studied / "study.yaml", str(refused[0].trial))
