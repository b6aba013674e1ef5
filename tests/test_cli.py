"""What the command line makes of errors; what its commands do stands in test_readme."""

import pytest
import typer

from kdsearch import cli
from kdsearch.errors import UserError


def ends_with(error: BaseException) -> None:
    def call() -> None:
        raise error

    cli.main(call)


@pytest.mark.parametrize(
    "message", ["install it: pip install '.[quickstart]'", "int must be [low, high]; the value is [3]", "no [/x] here: [red]"]
)
def test_a_message_is_printed_as_it_is(message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        ends_with(UserError([message, "another"]))
    assert capsys.readouterr().err.splitlines() == [f"error: {message}", "error: another"]
    with pytest.raises(SystemExit, match="1"):
        ends_with(RuntimeError(message))
    assert capsys.readouterr().err == f"failed: {message}\n"


def test_an_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()

    @app.command()
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        cli.main(lambda: app(args=[]))
    assert ended.value.code == 1
    assert "the same command goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["front"], 2), (["runn"], 2), (["run", "x.yaml", "--seed", "-1"], 2)])
def test_mistakes_of_the_command_line_keep_their_status(arguments: list[str], code: int) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(lambda: cli.app(args=arguments))
    assert ended.value.code == code
