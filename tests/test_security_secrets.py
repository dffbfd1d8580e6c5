"""Passwords in addresses and in the environment: no stream and no file of a command has them, in any spelling."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote

import pytest

from cifar_ablate.console import make_console
from cifar_ablate.text_safety import redact, redact_url, remember_secret
from tests.conftest import Answer, Workshop
from tests.tuning import write

SECRET = "Zq7/ge@heim#9 %x+ü"
"""With everything that an address must encode."""
ENCODED = quote(SECRET, safe="")
TOKEN = "tok-8841-geheim"
SPELLINGS = {SECRET, ENCODED, quote_plus(SECRET), unquote(ENCODED), SECRET.replace("%", "%%"), TOKEN, "Zq7", "heim"}
ODBC = "DRIVER=x;UID=me;PWD=hunter22!;Encrypt=yes"
SECRETS = {"MLFLOW_TRACKING_PASSWORD": SECRET, "MLFLOW_TRACKING_TOKEN": TOKEN, "PGPASSWORD": SECRET}


@dataclass
class Server:
    """A PostgreSQL server of this test that asks for a password, and what it holds as text."""

    port: int
    dump: list[str]

    def address(self, database: str, password: str = ENCODED) -> str:
        return f"postgresql+psycopg://tester:{password}@127.0.0.1:{self.port}/{database}"

    def content(self, database: str) -> bytes:
        command = [*self.dump, "-h", "127.0.0.1", "-p", str(self.port), "-U", "tester", database]
        environment = os.environ | {"PGPASSWORD": SECRET}
        return subprocess.run(command, env=environment, capture_output=True, check=True, cwd="/").stdout


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    initdb = programs[0] if programs else Path(shutil.which("initdb") or "")
    if not initdb.is_file():
        pytest.skip("no PostgreSQL server is installed here (Debian: apt-get install postgresql)")
    as_whom = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    place = Path(subprocess.run([*as_whom, "mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    keep = [*as_whom, "tee", str(place / "password")]
    subprocess.run(keep, input=f"{SECRET}\n", text=True, check=True, capture_output=True, cwd="/")
    access = ["-A", "scram-sha-256", "--pwfile", str(place / "password"), "-U", "tester", "-E", "UTF8", "--no-sync"]
    make = [*as_whom, str(initdb), "-D", str(place / "data"), *access]
    subprocess.run(make, check=True, capture_output=True, cwd="/")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={place} -c fsync=off"
    control = [*as_whom, str(initdb.with_name("pg_ctl")), "-D", str(place / "data"), "-w"]
    start = [*control, "-o", options, "-l", str(place / "log"), "start"]
    subprocess.run(start, check=True, capture_output=True, cwd="/")
    try:
        yield Server(port, [str(initdb.with_name("pg_dump"))])
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=False, capture_output=True, cwd="/")
        shutil.rmtree(place, ignore_errors=True)


def has_no_secret(content: bytes | str, where: object, spellings: set[str] = SPELLINGS) -> None:
    raw = content.encode("utf-8", "replace") if isinstance(content, str) else content
    for spelling in spellings:
        for encoding in ("utf-8", "utf-16-le"):
            assert spelling.encode(encoding) not in raw, f"{where} has {spelling!r}"


def leaves_no_secret(folder: Path, *answers: Answer, spellings: set[str] = SPELLINGS) -> None:
    for answer in answers:
        has_no_secret(answer.out, "what is printed", spellings)
        has_no_secret(answer.err, "the error stream", spellings)
    for path in folder.rglob("*"):
        has_no_secret(str(path.relative_to(folder)), "a name", spellings)
        if path.is_file():
            has_no_secret(path.read_bytes(), path, spellings)


@pytest.mark.cluster
def test_a_whole_study_on_servers_with_passwords_leaves_them_nowhere(workshop: Workshop, server: Server) -> None:
    write(workshop)
    store, trials = server.address("postgres"), server.address("template1")
    environment = SECRETS | {"MLFLOW_TRACKING_URI": store, "OPTUNA_STORAGE": trials}
    small = ("--set", "epochs=1")
    commands = [
        ("run", "small.yaml", *small),
        ("plan", "small.yaml", *small),
        ("tune", "small.yaml", "--storage", trials, "--write", "--trials", "1", "--history", "trials"),
        ("report", "--output", "reports/summary.html"),
        ("report", "--format", "latex"),
        ("promote", "small@epochs=1", "--arm", "smooth"),
        ("package", "packaged", "--space"),
        ("export", "small@epochs=1", "record"),
        ("sync",),
    ]
    answers = [workshop.process(*command, **environment) for command in commands]
    assert not [answer for answer in answers if answer.code]
    leaves_no_secret(workshop.folder, *answers)
    text = (workshop.folder / "small-tuned.yaml").read_text()
    assert "# Written by: " in text
    assert "postgresql+psycopg://tester:***@127.0.0.1" in text
    for database in ("postgres", "template1"):
        content = server.content(database)
        assert b"CREATE TABLE" in content
        has_no_secret(content, database)


@pytest.mark.slow
def test_a_wrong_password_is_one_sentence_without_it(workshop: Workshop, server: Server) -> None:
    write(workshop)
    wrong = server.address("postgres", quote(f"{SECRET}wrong", safe=""))
    for arguments, environment in (
        (("report",), {"MLFLOW_TRACKING_URI": wrong}),
        (("tune", "small.yaml", "--offline", "--storage", wrong), {}),
    ):
        answer = workshop.process(*arguments, **environment)
        assert answer.code == 1
        assert "password authentication failed" in answer.err
        assert answer.err.count("\n") == 1
        leaves_no_secret(workshop.folder, answer)


S = "Zq7geheim"
ADDRESSES = (
    f"postgresql+psycopg://u:{S}@127.0.0.1:1/db",
    f"postgresql+psycopg://u:{S}@127.0.0.1:port/db",
    f"postgresql+psycopg://u:{S}@127.0.0.1:99999999/db",
    f"postgresql+psycopg://u:a{S}%25@/{S}#{S}@127.0.0.1:1/db",
    f"postgresql+psycopg://u:{S}%zz@127.0.0.1:1/db",
    f"postgresql+psycopg://u:{S}%28@127.0.0.1:1/db",
    f"postgresql+psycopg://127.0.0.1:1/db?user=u&password={S}",
    f"postgresql+psycopg://u:{S}@127.0.0.1:1/db?nosuchoption={S}@",
    f"postgresql+psycopg2://u:{S}@h/db",
    f"mysql://u:{S}@h/db",
    f"mssql+pyodbc://u:{S}@h/db",
    f"postgres://u:{S}@h/db",
    f"nosuch://u:{S}@h",
    f"u:{S}@h",
)
ADDRESSES_OF_SERVERS = (
    f"http://u:{S}@127.0.0.1:1",
    f"http://{S}@127.0.0.1:1",
    f"http://u:{S}@127.0.0.1:port",
    f"http://u:{S}@[::1",
    f"http://u:{S} {S}@127.0.0.1:1",
    f"https://u:{S}@127.0.0.1:1/a/b?token={S}",
    f"databricks://u:{S}@h",
)
EVERY = """
import os, sys
from cifar_ablate.cli import main
name, arguments, addresses = sys.argv[1], sys.argv[2].split(), sys.argv[3:]
for address in addresses:
    if name:
        os.environ[name] = address
    sys.argv = ["cifar-ablate", *(address if one == "ADDRESS" else one for one in arguments)]
    try:
        main()
    except SystemExit as end:
        print("ended with", end.code, flush=True)
    except Exception:
        sys.excepthook(*sys.exc_info())
        print("fell with a traceback", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "addresses"),
    [
        ("MLFLOW_TRACKING_URI", "report", ADDRESSES + ADDRESSES_OF_SERVERS),
        ("MLFLOW_TRACKING_URI", "run small.yaml", ADDRESSES[:3] + ADDRESSES_OF_SERVERS[:3]),
        ("OPTUNA_STORAGE", "tune small.yaml --offline --device cpu", ADDRESSES[:2] + ADDRESSES[6:13]),
        ("", "tune small.yaml --offline --storage ADDRESS", (ADDRESSES[3], f"redis://u:{S}@h/0", f"redis://{S}@h/0")),
        ("", "tune small.yaml --offline --storage=ADDRESS --write --output no/folder.yaml", ADDRESSES[:1]),
        ("", "predict x.png --model ADDRESS", ADDRESSES[:1]),
    ],
)
def test_an_address_that_does_not_work_is_one_sentence_without_its_password(
    name: str, arguments: str, addresses: tuple[str, ...], workshop: Workshop
) -> None:
    write(workshop)
    done = subprocess.run(
        [sys.executable, "-c", EVERY, name, arguments, *addresses],
        cwd=workshop.folder,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.stdout.count("ended with") == len(addresses), done.stdout + done.stderr
    assert "ended with 0" not in done.stdout
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == len(addresses), done.stderr
    if name:
        leaves_no_secret(workshop.folder, Answer(1, done.stdout, done.stderr), spellings={S})
    elif "predict" not in arguments:
        has_no_secret(done.stdout + done.stderr, "what is printed", {S})


def test_a_traceback_has_no_password(workshop: Workshop) -> None:
    """Of what is ours to mend and no sentence, Python tells all it knows; libraries quote the address they got."""
    code = """
        import os
        from cifar_ablate.console import leaving_at_once
        address = os.environ["MLFLOW_TRACKING_URI"]
        with leaving_at_once():
            raise RuntimeError(f"{address} or {address.partition(':')[2]}: \\x1b[2J")
    """
    script = workshop.write("falls.py", code)
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"postgresql://me:{ENCODED}@h/db"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert "RuntimeError: postgresql://me:***@h/db" in done.stderr
    has_no_secret(done.stderr, "a traceback")
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://me:secret@h/db", "postgresql://me:***@h/db"),
        ("postgresql://me:se@cr/et@h/db", "postgresql://me:***@h/db"),
        ("http://token@h:5000", "http://***@h:5000"),
        ("--storage=postgresql://me:secret@h/db", "--storage=postgresql://me:***@h/db"),
        ("postgresql://h/db?user=me&password=secret", "postgresql://h/db?user=me&password=***"),
        ("s3://h/b?aws_secret_access_key=secret&x=1", "s3://h/b?aws_secret_access_key=***&x=1"),
        ("postgresql://h/db?password=abc'def", "postgresql://h/db?password=***"),
        ("postgresql://h/db?password=abc',\"d", "postgresql://h/db?password=***"),
        ("cannot open 'postgresql://h/db?password=abc'def', try", "cannot open 'postgresql://h/db?password=***', try"),
        (f"mssql+pyodbc:///?odbc_connect={quote_plus(ODBC)}&x=1", "mssql+pyodbc:///?odbc_connect=***&x=1"),
        (f"mssql+pyodbc:///?odbc_connect={ODBC}", "mssql+pyodbc:///?odbc_connect=***;UID=me;PWD=***;Encrypt=yes"),
        ("me:secret@h", "me:***@h"),
        ("http://127.0.0.1:5000/#/experiments/a@pilot", "http://127.0.0.1:5000/#/experiments/a@pilot"),
        ("sqlite:////home/me@work/optuna.db", "sqlite:////home/me@work/optuna.db"),
        ("sqlite:///optuna.db", "sqlite:///optuna.db"),
        ("my-study@pilot", "my-study@pilot"),
        ("optimizer.lr=0.1", "optimizer.lr=0.1"),
    ],
)
def test_of_an_address_only_the_secret_is_hidden(address: str, shown: str) -> None:
    assert redact_url(address) == shown


@pytest.mark.parametrize(
    ("address", "secrets"),
    [
        (f"mssql+pyodbc:///?odbc_connect={quote_plus(ODBC)}", ["hunter22!", "hunter22%21", ODBC]),
        ("mssql+pyodbc:///?odbc_connect=" + quote_plus("UID=me;PWD={a;b}}c};X=1"), ["a;b}c", "{a;b}}c}"]),
        ("postgresql://h/db?password=abc',\"d", ["abc',\"d"]),
    ],
)
def test_a_secret_within_a_parameter_is_found_by_itself(
    address: str, secrets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTUNA_STORAGE", address)
    for secret in secrets:
        assert redact(f"refused {secret} of me") == "refused *** of me"


def test_what_is_printed_has_no_password(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{ENCODED}@h:5000")
    console = make_console()
    console.print(f"no artifact at http://me:{ENCODED}@h:5000/a, for {SECRET} is wrong", highlight=False, markup=False)
    assert capsys.readouterr().out == "no artifact at http://me:***@h:5000/a, for *** is wrong\n"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:another-one@h:5000")
    console.print("another-one")
    assert capsys.readouterr().out == "***\n"


def test_a_secret_is_hidden_without_its_address_too_and_words_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://postgres:{ENCODED}@h/db")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "postgres")
    remember_secret("postgresql://me:other-secret@h/db")
    said = f"postgresql refused {SECRET}, {ENCODED}, {SECRET!r} and other-secret of postgres"
    assert redact(said) == "postgresql refused ***, ***, '***' and *** of ***"
