import re
import socket
import time
import urllib.request
import warnings

import pytest
from synthetic_study import FACTS

from kdsearch.errors import UserError
from kdsearch.report import dashboard

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import optuna


@pytest.fixture
def storage(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.create_study(storage=url, study_name="reviews", directions=["maximize", "minimize"])
    return url


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_notes_say_what_was_found(study):
    notes = {record.trial: dashboard.note(record, FACTS) for record in study.records}
    assert notes[1].startswith("**complete**, baseline distilbert\n\nBreaks a limit of the study, so it is never on the front.")
    assert f"| accuracy | {study.records[1].measurement.accuracy:.4f} ± 0.0122 | 0.8710 ± 0.0090 |" in notes[1]
    assert "Reason: RuntimeError: <b>out of memory</b>" in notes[20]
    assert "The same student as trial 24" in notes[25]
    refused = next(record for record in study.records if record.measurement.state == "refused")
    assert "Refused: latency_relative" in notes[refused.trial]
    assert all("layers ×" in note for note in notes.values())


def test_publishing_puts_the_front_and_a_note_into_the_study(study, storage):
    stored = optuna.load_study(study_name="reviews", storage=storage)
    dashboard.publish(stored, study)
    dashboard.publish(stored, study)  # again, as after a resumed search: replaced, not added
    attributes = stored._storage.get_study_system_attrs(stored._study_id)
    assert {re.sub(r"\d+$", "", key) for key in attributes if "plot_data" in key} == {"dashboard:plot_data:kdsearch-front:"}
    note = "".join(value for key, value in sorted(attributes.items()) if key.startswith("dashboard:note_str"))
    assert "*Best Trials* ignores the study's limits" in note
    assert "Constraints of a trial, above 0 where broken, in their order: latency_relative; and" in note
    assert "knee: trial" in note


def test_the_server_answers_on_this_machine(study, storage):
    port = free_port()
    server = dashboard.start(study, storage, "127.0.0.1", port)
    try:
        assert "reviews" in answer(f"http://127.0.0.1:{port}/api/studies", server)
        with pytest.raises(UserError, match=f"port {port}: cannot be opened on 127.0.0.1"):
            dashboard.start(study, storage, "127.0.0.1", port)
    finally:
        server.terminate()
        server.wait()


def answer(url, server):
    for _ in range(150):
        assert server.poll() is None
        try:
            with urllib.request.urlopen(url, timeout=5) as page:
                return page.read().decode()
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} did not answer within 30 seconds")


def test_storages_without_a_study_are_refused(study, tmp_path):
    missing = tmp_path / "missing.db"
    with pytest.raises(UserError, match="does not exist; run the study first"):
        dashboard.serve(study, f"sqlite:///{missing}")
    assert not missing.exists()
    (tmp_path / "empty.db").touch()
    with pytest.raises(UserError, match="holds no study"):
        dashboard.serve(study, f"sqlite:///{tmp_path / 'empty.db'}")
    (tmp_path / "text.db").write_text("not a database, but long enough to be read as one" * 20)
    with pytest.raises(UserError, match="cannot be opened"):
        dashboard.serve(study, f"sqlite:///{tmp_path / 'text.db'}")
    with pytest.raises(UserError, match="cannot be opened"):
        dashboard.serve(study, "nonsense://nowhere")
