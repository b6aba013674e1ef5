import shutil
from pathlib import Path

import pytest

from kdsearch.kept import written_aside


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "outputs"
    with pytest.raises(FileNotFoundError), written_aside(folder) as aside:
        shutil.copytree(tmp_path / "absent", Path(shutil.copy(__file__, aside)))
    assert list((tmp_path / "deep").iterdir()) == []
    with written_aside(folder) as aside:
        (aside / "whole.npy").write_text("x")
        assert not folder.exists()
    assert [path.name for path in folder.parent.iterdir()] == ["outputs"]
    assert (folder / "whole.npy").read_text() == "x"
