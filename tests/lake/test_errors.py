import pytest

from lake import errors
from lake.errors import ModelRefused, Unavailable, WorldlakeError, one_line
from worldlake import cli


def every(kind: type[WorldlakeError]) -> list[type[WorldlakeError]]:
    return [one for child in kind.__subclasses__() for one in (child, *every(child))]


def test_the_tree_is_one_file_that_opens_with_it() -> None:
    tree = errors.__doc__ or ""
    assert all(one.__name__ in tree for one in every(WorldlakeError) if one.__module__ == "lake.errors")
    defined = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Exception)]
    assert all(issubclass(one, WorldlakeError) for one in defined)


@pytest.mark.parametrize(("error", "code"), [(ModelRefused("no\nweights."), 2), (Unavailable("no\nstore."), 1)])
def test_an_error_says_with_which_code_the_command_ends(
    error: WorldlakeError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(cli, "explain", lambda words: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert capsys.readouterr().err.startswith(f"worldlake: {one_line(error)}")


def test_one_line_is_short_and_has_no_colors() -> None:
    assert one_line("\x1b[31mno such\n\n  file\x1b[0m.") == "no such file"
    assert one_line(ValueError("a " * 400), 500) == ("a " * 400)[:500]
