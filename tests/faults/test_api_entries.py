"""Programs that add, change and put back accounts while workers are killed."""

from tests.faults.restless_provider import account_name
from tests.faults.scene import BOUNDED, IN_FLIGHT, Scene, a_scene
from tests.support.directory import KEY, Programs
from watcher.store.directory import Directory

pytestmark = BOUNDED

ACCOUNTS = 50
OF_THE_FILE = 10
EVERY = {"interval": "1s", "pending_interval": "1s"}


def leave_to_programs(scene: Scene) -> None:
    """Take all accounts but a few out of the file."""
    listed = scene.directory / "accounts.jsonl"
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[:OF_THE_FILE]))
    file = scene.directory / "watcher.toml"
    file.write_text(f'{file.read_text()}\n[api]\nsecret_key = "{KEY}"\n')


async def test_accounts_added_by_the_api_while_workers_are_killed_lose_nothing() -> None:
    async with a_scene(accounts=ACCOUNTS) as scene:
        leave_to_programs(scene)
        programs = Programs(Directory(scene.pipe, scene.keys), scene.keys.namespace)
        await scene.start_workers(3)

        async def put(number: int, **settings: str) -> None:
            await programs.put_account(
                account_name(number), "loopring", account_id=number, **{**EVERY, **settings}
            )

        for number in range(OF_THE_FILE + 1, ACCOUNTS + 1):
            await put(number)
            if number % 20 == 0:
                await scene.random.choice(scene.running).kill()
                await scene.start_worker()
        await scene.begin(changes_per_second=120)
        for _ in range(2):
            await scene.random.choice(scene.running).kill()
            for number in scene.random.sample(range(OF_THE_FILE + 1, ACCOUNTS + 1), 10):
                await programs.directory.delete("account", account_name(number))
                await put(number, interval="2s")
            await scene.start_worker()
            await scene.until_delivered(60, within_s=20)
        verdict = await scene.verdict(within_s=50)
    assert verdict.problems == []
    assert verdict.repeats <= IN_FLIGHT * 4
