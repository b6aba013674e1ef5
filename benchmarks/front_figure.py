"""The front of a study as a picture and a table: what the README shows.

    python benchmarks/front_figure.py studies/quickstart [--out benchmarks/quickstart]

writes OUT.svg, by plotly's kaleido (pip install kaleido; it needs Chrome or Chromium), and OUT.md with the numbers, from the study's
folder.
"""

import argparse
import datetime
from io import StringIO
from pathlib import Path

from rich.console import Console

from kdsearch.report import figures, front, study_folder, tables


def document(folder: study_folder.StudyFolder, command: str) -> str:
    """The table of the terminal, the machine, the date, how the trials ended."""
    text = StringIO()
    tables.show_front(folder, Console(file=text, width=tables.WIDE_ENOUGH))
    volume = front.document(folder)["hypervolume"]
    trained = [record for record in folder.records if record.duplicate_of is None and record.measurement.steps]
    seconds = sum(record.measurement.seconds for record in trained)
    versions = ", ".join(f"{name} {number}" for name, number in folder.facts["versions"].items())
    return f"""# The front of the study {folder.facts["name"]}

`{command}`

{datetime.date.today().isoformat()}; {folder.facts["machine"]}, {folder.facts["workers"]} workers; {versions}.

```
{text.getvalue().rstrip()}
```

{len(trained)} students trained, for {folder.facts["spec"]["proxy"]["steps"]} steps unless they were stopped,
{seconds / max(1, len(trained)):.1f} s on average with measuring and scoring.
Hypervolume {volume["value"]:.4f} (reference: accuracy {volume["reference"][0]:.3f}, the teacher's latency).
"""


def main() -> None:
    """Read the study, write both files."""
    parser = argparse.ArgumentParser(description="The front of a study as a picture and a table.")
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/quickstart"))
    options = parser.parse_args()
    folder = study_folder.load(options.study)
    figure = figures.front_figure(figures.front_values(folder))
    figure.write_image(options.out.with_suffix(".svg"), width=900, height=520)
    command = f"kdsearch run {options.study}.yaml && python benchmarks/front_figure.py {options.study}"
    options.out.with_suffix(".md").write_text(document(folder, command), encoding="utf-8")


if __name__ == "__main__":
    main()
