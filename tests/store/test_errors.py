"""Any error reply of Redis or a proxy: what is at fault, and the message."""

import re

import pytest
from redis.exceptions import ResponseError

from tests.support.replying import ReplyingServer
from tests.support.servers import ENGINES, real_server
from watcher.printable import hide
from watcher.store.client import connect
from watcher.store.errors import DamagedKey, in_our_words
from watcher.store.exceptions import ConfigurationRefused, StoreError, StoreRefuses, StoreUnreachable
from watcher.store.pipe import Pipe

IN_7_0 = " script: 1298a004669397449ff17fa84f16cd3bbf02024e, on @user_script:1."
IN_6_2 = "ERR Error running script (call to f_1298a004669397449ff17fa84f16cd3bbf02024e): @user_script:1: "
SECRET = "canary-7f3a"


async def raised(reply: str) -> Exception:
    """What a command raises that is answered by this error."""
    async with ReplyingServer(f"-{reply}".encode()) as server, connect(server.url) as client:
        with pytest.raises((StoreError, ResponseError)) as caught:
            await Pipe(client).command("GET", "x")
    return caught.value


@pytest.mark.parametrize(
    "reply",
    [
        "ERR max requests limit exceeded. Limit: 500000, Usage: 500000. See the documentation for details.",
        "ERR too many requests",
        "ERR max daily request limit exceeded" + IN_7_0,
        "ERR upstream failure",
        "ERR DENIED by the proxy's policy",
        "ERR proxy is LOADING its rules",
        "upstream failure",
        "no upstream host",
        "ERR Connection timed out",
        "ERR handle request, command 'EVALSHA' is not allowed",
        "ERR operation not permitted",
        "ERR problem with LDAP service",
        "QUOTAEXCEEDED the database is full",
        "NOSCRIPT No matching script.",
        "EXECABORT x",
        "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        "MOVED nowhere",
        "ASK 1 2 3",
        "ERR",
        "",
        "ERR \x1b[31mred",
    ],
)
async def test_an_unknown_error_is_a_store_error(reply: str) -> None:
    error = await raised(reply)
    assert isinstance(error, StoreRefuses)
    assert error.exit_code == 69
    assert "unknown error: " in str(error)
    assert str(error).isprintable()
    assert len(str(error)) <= 200, "the log cuts what is longer, and what to do comes last"


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL.", StoreRefuses, "SCRIPT KILL"),
        ("BUSY Redis is busy running a module.", StoreRefuses, "is busy with a script"),
        ("ERR max number of clients reached", StoreRefuses, "raise its maxclients"),
        ("ERR max number of clients + cluster connections reached", StoreRefuses, "no connection left"),
        (
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is",
            StoreRefuses,
            "lost its primary",
        ),
        ("LOADING Redis is loading the dataset in memory", StoreUnreachable, "loading its data"),
        ("CLUSTERDOWN Hash slot not served", StoreRefuses, "slots of its Cluster"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", StoreRefuses, "slots of its Cluster"),
        ("MISCONF Errors writing to the AOF file", StoreRefuses, r"refuses writes \(MISCONF\)"),
        ("OOM command not allowed when used memory > 'maxmemory'." + IN_7_0, StoreRefuses, r"writes \(OOM\)"),
        (
            IN_6_2 + "-OOM command not allowed when used memory > 'maxmemory'.",
            StoreRefuses,
            r"writes \(OOM\)",
        ),
        (
            "READONLY You can't write against a read only replica.",
            StoreRefuses,
            "use the URL of the primary",
        ),
        ("NOREPLICAS Not enough good replicas to write.", StoreRefuses, "too few of its replicas"),
        ("NOAUTH Authentication required.", ConfigurationRefused, "asks for credentials"),
        (
            "WRONGPASS invalid username-password pair or user is disabled.",
            ConfigurationRefused,
            "credentials",
        ),
        ("ERR invalid password", ConfigurationRefused, "refuses the credentials"),
        (
            "ERR AUTH <password> called without any password configured for the default user. Are you sure "
            "your configuration is correct?",
            ConfigurationRefused,
            "take the credentials out",
        ),
        ("ERR Client sent AUTH, but no password is set", ConfigurationRefused, "take the credentials out"),
        ("ERR wrong number of arguments for 'auth' command", ConfigurationRefused, "refuses the credentials"),
        (
            "NOPERM this user has no permissions to run the 'zadd' command",
            ConfigurationRefused,
            "forbids its user",
        ),
        (
            "ERR The user executing the script can't run this command or subcommand" + IN_7_0,
            ConfigurationRefused,
            "forbids its user",
        ),
        (
            "ERR The user executing the script can't access at least one of the keys mentioned in the "
            "command arguments" + IN_7_0,
            ConfigurationRefused,
            "forbids its user",
        ),
        (
            IN_6_2 + "-NOPERM The user executing the script can't run this command or subcommand",
            ConfigurationRefused,
            "forbids its user",
        ),
        (
            "ERR ACL failure in script: User w has no permissions to run the 'zadd' command script: on "
            "@user_script:1.",
            ConfigurationRefused,
            "forbids its user",
        ),
        ("DENIED Redis is running in protected mode because", ConfigurationRefused, "set a password there"),
        ("ERR DB index is out of range", ConfigurationRefused, "no database of this number"),
        ("ERR SELECT is not allowed in cluster mode", ConfigurationRefused, r"name it by redis\+cluster://"),
        ("MOVED 3999 127.0.0.1:6381", ConfigurationRefused, r"name it by redis\+cluster://"),
        ("ASK 3999 :6381", ConfigurationRefused, r"name it by redis\+cluster://"),
        ("CROSSSLOT Keys in request don't hash to the same slot", ConfigurationRefused, r"redis\+cluster://"),
        ("ERR This instance has cluster support disabled", ConfigurationRefused, "name it by redis://"),
        (
            "ERR unknown command 'SENTINEL', with args beginning with: 'masters'",
            ConfigurationRefused,
            "no Sentinel",
        ),
        (
            "ERR unknown command `EVALSHA`, with args beginning with: `x`",
            ConfigurationRefused,
            r"\(EVALSHA\)",
        ),
        ("ERR unknown command 'EVALSHA'", ConfigurationRefused, "renamed, or is this a proxy"),
        (
            "ERR Unknown Redis command called from script" + IN_7_0,
            ConfigurationRefused,
            "does not know a command",
        ),
    ],
)
async def test_a_known_error_has_a_message_of_its_own(reply: str, kind: type[StoreError], words: str) -> None:
    error = await raised(reply)
    assert isinstance(error, kind)
    with pytest.raises(kind, match=words):
        raise error


@pytest.mark.parametrize(
    "reply",
    [
        "ERR user_script:1: attempt to index local 'a' (a nil value)" + IN_7_0,
        IN_6_2 + "user_script:1: attempt to index local 'a' (a nil value)",
        "ERR Error compiling script (new function): user_script:1: unexpected symbol near '<eof>'",
        "ERR value is not a valid float" + IN_7_0,
        "ERR value is not an integer or out of range",
        "ERR syntax error",
        "ERR wrong number of arguments for 'set' command",
        "ERR Wrong number of args calling Redis command from script" + IN_7_0,
        "ERR Number of keys can't be greater than number of args",
        "ERR The ID specified in XADD is equal or smaller than the target stream top item" + IN_7_0,
        "ERR The stream has exhausted the last possible ID, unable to add more items" + IN_7_0,
    ],
)
async def test_an_error_caused_by_us_is_not_translated(reply: str) -> None:
    assert type(await raised(reply)) is ResponseError


@pytest.mark.parametrize("where", ["", IN_7_0])
async def test_a_key_of_another_type_is_named(where: str) -> None:
    wrong = f"WRONGTYPE Operation against a key holding the wrong kind of value{where}"
    for reply in (wrong, IN_6_2 + wrong):
        error = await raised(reply)
        assert isinstance(error, DamagedKey)
        assert re.fullmatch(
            r"in Redis at \S+, x is not of watcher's type \(WRONGTYPE\): restore it or delete it", str(error)
        )


@pytest.mark.parametrize("engine", ENGINES)
async def test_our_mistakes_are_distinguished_from_revoked_rights_on_real_servers(engine: str) -> None:
    with real_server(engine) as server:
        async with connect(server.url) as client:
            pipe = Pipe(client)
            await pipe.command("SET", "text", "1")
            for script in ("return nil + 1", "return redis.call('LLEN', 'text')", "return 1 +"):
                with pytest.raises(ResponseError):
                    await pipe.command("EVAL", script, 0)
            await pipe.command("ACL", "SETUSER", "default", "-zadd", "resetkeys", "~t*")
            for script in ("return redis.call('ZADD', 't', 1, 'x')", "return redis.call('GET', 'other')"):
                with pytest.raises(ConfigurationRefused, match="forbids its user"):
                    await pipe.command("EVAL", script, 0)


async def test_arguments_quoted_in_an_error_reply_are_not_shown() -> None:
    hide([SECRET])
    for reply in (
        f"ERR unknown command 'AUTH', with args beginning with: 'me' '{SECRET}'",
        f"ERR no such thing, with args beginning with: 'short' '{SECRET}'",
        f"ERR AUTH {SECRET} is not what it was",
    ):
        error = await raised(reply)
        assert SECRET not in str(error)
        assert "short" not in str(error)


def test_a_hanging_server_is_reported_as_not_answering() -> None:
    error = in_our_words(TimeoutError(), "db")
    assert isinstance(error, StoreUnreachable)
    assert str(error) == "Redis at db does not answer in time; is it stopped or overloaded?"
