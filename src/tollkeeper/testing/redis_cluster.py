"""A Redis Cluster of real servers on loopback, whose slots can be moved under load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from tollkeeper.testing.redis_server import RedisServer, free_port, until

SLOTS: Final = 16384


class Cluster:
    """Masters that share the slots evenly, in order; without `replicate`, a killed one takes its slots with it until it is back.

    `config` is added to each node's.
    """

    def __init__(
        self,
        folder: Path | str,
        masters: int = 3,
        *,
        config: Mapping[str, str] | None = None,
        executable: str | None = None,
    ) -> None:
        self._folder, self._executable, self._config = Path(folder), executable, dict(config or {})
        self.nodes = [self._node(str(index)) for index in range(masters)]
        self._owners: dict[int, RedisServer] = {}

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                node.start()
            self._join()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _node(self, name: str) -> RedisServer:
        own = {"cluster-enabled": "yes", "cluster-port": str(free_port()), "cluster-node-timeout": "2000"}
        return RedisServer(self._folder / name, executable=self._executable, config=own | self._config)

    @property
    def url(self) -> str:
        """That of the first node."""
        return self.nodes[0].url

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()

    @property
    def whole(self) -> bool:
        """Every node sees every other one, and all slots are served."""
        return all(self._knows_all(node) for node in self.nodes)

    def client(self, **options: Any) -> redis.RedisCluster:
        """A client that follows redirections and tries nothing twice otherwise."""
        tries_once: dict[str, Any] = {"retry": Retry(NoBackoff(), 0)}
        return redis.RedisCluster(**{"host": "127.0.0.1", "port": self.nodes[0].port, **tries_once, **options})

    def node_of(self, slot: int | str) -> RedisServer:
        """Who owns a slot, or the slot of a key."""
        return self._owners[slot if isinstance(slot, int) else key_slot(slot.encode())]

    def move_slot(self, slot: int | str, to: RedisServer, *, batch: int = 100) -> None:
        """Give a slot (or that of a key) and its keys to another node, as redis-cli does it, while clients go on.

        Between `begin_move` and `end_move` a client sees ASK for keys that have gone, afterwards MOVED.
        """
        self.begin_move(slot, to)
        while self.move_keys(slot, to, batch):
            pass
        self.end_move(slot, to)

    def begin_move(self, slot: int | str, to: RedisServer) -> None:
        """The slot migrates: keys that are not at its owner are looked for at `to`."""
        number, source = self._slot(slot), self.node_of(slot)
        _ask(to, "SETSLOT", number, "IMPORTING", _id(source))
        _ask(source, "SETSLOT", number, "MIGRATING", _id(to))

    def move_keys(self, slot: int | str, to: RedisServer, count: int = 100) -> int:
        """Move at most so many keys of a migrating slot, and say how many it were."""
        source = self.node_of(slot)
        with source.client() as client:
            keys = client.execute_command("CLUSTER GETKEYSINSLOT", self._slot(slot), count)
            if keys:
                client.migrate(
                    "127.0.0.1", to.port, keys, 0, 30_000, replace=True
                )  # what a killed node has again since, and is not its own, goes
        return len(keys)

    def end_move(self, slot: int | str, to: RedisServer) -> None:
        """The slot is the new owner's, and every node knows it."""
        number = self._slot(slot)
        for node in [to, *(node for node in self.nodes if node is not to)]:
            _ask(node, "SETSLOT", number, "NODE", _id(to))
        self._owners[number] = to

    def replicate(self, master: RedisServer) -> RedisServer:
        """A replica of a node that has all of it, one more of `nodes`."""
        replica = self._node("replica").start()
        self.nodes.append(replica)
        _ask(replica, "MEET", "127.0.0.1", master.port, master.config["cluster-port"])
        until(lambda: self.whole, "a cluster whose nodes know the replica")
        _ask(replica, "REPLICATE", _id(master))
        with replica.client() as client:
            until(lambda: client.info("replication").get("master_link_status") == "up", "a replica that follows")
        replica.caught_up(master)
        return replica

    def leave_behind(self, replica: RedisServer, master: RedisServer) -> None:
        """From here on the replica lags: its master does not let it read, until `take_over`."""
        with master.client() as client, replica.client() as behind:
            client.execute_command("ACL", "SETUSER", "default", "-psync", "-sync")
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")
            until(lambda: behind.info("replication")["master_link_status"] == "down", "a replica that is cut off")

    def take_over(self, replica: RedisServer, master: RedisServer) -> None:
        """The replica makes itself the master, whatever it lacks; its old master, which is well, becomes its replica."""
        _ask(replica, "FAILOVER", "TAKEOVER")
        with master.client() as client:
            until(lambda: client.info("replication").get("master_link_status") == "up", "the old master as a replica")
            client.execute_command("ACL", "SETUSER", "default", "+psync", "+sync")

    def _slot(self, slot: int | str) -> int:
        return slot if isinstance(slot, int) else int(key_slot(slot.encode()))

    def _join(self) -> None:
        first = self.nodes[0]
        for index, node in enumerate(self.nodes):
            begin, end = (SLOTS * each // len(self.nodes) for each in (index, index + 1))
            _ask(node, "ADDSLOTSRANGE", begin, end - 1)
            _ask(node, "SET-CONFIG-EPOCH", index + 1)
            self._owners |= dict.fromkeys(range(begin, end), node)
            if node is not first:
                _ask(node, "MEET", "127.0.0.1", first.port, first.config["cluster-port"])
        until(lambda: all(self._knows_all(node) for node in self.nodes), "a cluster whose nodes know each other")

    def _knows_all(self, node: RedisServer) -> bool:
        info = _ask(node, "INFO")
        return f"cluster_known_nodes:{len(self.nodes)}" in info and "cluster_state:ok" in info


def _ask(node: RedisServer, command: str, *arguments: str | int) -> str:
    with node.client() as client:
        answer = client.connection_pool.get_connection()
        try:
            answer.send_command("CLUSTER", *command.split(), *arguments)
            told = answer.read_response()
        finally:
            client.connection_pool.release(answer)
    return told.decode() if isinstance(told, bytes) else str(told)


def _id(node: RedisServer) -> str:
    return _ask(node, "MYID")
