from __future__ import annotations

import pytest

from modelzip_cli.errors import FileNotThere, UsageError, UserCodeFailed
from modelzip_cli.running.import_path import import_object, is_import_path
from tests.running.opening import written


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("a.py:f", True),
        ("dir/with space/ä.py:f_1", True),
        ("package.module:Name", True),
        ("module:f", True),
        ("a.npz", False),
        ("a.npz:f()", False),
        ("dir/a:f", False),
        ("a.py:", False),
        (":f", False),
        ("a.py:1f", False),
        ("a..b:f", False),
    ],
)
def test_what_an_import_path_is(text, is_one):
    assert is_import_path(text) == is_one


def test_a_file_may_import_what_lies_beside_it(tmp_path):
    written(tmp_path / "beside_it.py", "NUMBER = 3")
    path = written(tmp_path / "json.py", "from beside_it import NUMBER\ndef f():\n    return NUMBER\n")
    assert import_object(f"{path}:f")() == 3  # a name of the standard library does no harm


def test_a_module_may_be_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "own_package").mkdir()
    written(tmp_path / "own_package" / "inner.py", "NUMBER = 3")
    monkeypatch.chdir(tmp_path)
    assert import_object("own_package.inner:NUMBER") == 3
    assert import_object("os.path:join")("a", "b") == "a/b"


@pytest.mark.parametrize(
    ("path", "error", "problem"),
    [
        ("coda.py:make", FileNotThere, "coda.py: no such file; did you mean 'code.py'?"),
        ("code.py:makes", UsageError, "code.py:makes: code.py has no makes; did you mean 'make'?"),
        ("code.py:zzzzzzz", UsageError, "code.py:zzzzzzz: code.py has no zzzzzzz"),
        ("no_such_module.x:f", UsageError, "no_such_module.x: no module no_such_module here or installed"),
        ("os.no_such:f", UsageError, "os.no_such: no module os.no_such here or installed"),
        ("code", UsageError, "code: not an import path: module:name or file.py:name"),
        ("fails.py:f", UserCodeFailed, "fails.py:f: ZeroDivisionError: division by zero; --debug shows where"),
        (
            "lacks.py:f",
            UserCodeFailed,
            "lacks.py:f: ModuleNotFoundError: No module named 'no_such'; --debug shows where",
        ),
        ("lacks:f", UserCodeFailed, "lacks:f: ModuleNotFoundError: No module named 'no_such'; --debug shows where"),
        ("breaks.py:f", UserCodeFailed, "breaks.py:f: SyntaxError: "),
    ],
)
def test_what_is_wrong_with_an_import_path_is_named(tmp_path, monkeypatch, path, error, problem):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    written(tmp_path / "code.py", "def make(): ...")
    written(tmp_path / "fails.py", "1 / 0")
    written(tmp_path / "lacks.py", "import no_such")
    written(tmp_path / "breaks.py", "def f(:")
    with pytest.raises(error) as caught:
        import_object(path)
    assert type(caught.value) is error
    assert str(caught.value).startswith(problem)
